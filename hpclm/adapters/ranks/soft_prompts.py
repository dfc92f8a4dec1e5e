"""What all soft prompts have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hpclm.core.ranks.seeds import named_generator
from hpclm.core.spec import TaskTemplate
from hpclm.formats.ranks.shards import megatron_shards

# Frozen tables are `prompts.kept.…` in every existing checkpoint.
_FROZEN, _FROZEN_ON_DISK = "prompts.frozen_tables.", "prompts.kept."


class SoftPrompts(MegatronModule):
    """Virtual tokens of several tasks, fp32 for any precision of the base model.

    Calling it gives the table [tasks, virtual tokens, hidden] in the order of `templates`; tasks with fewer virtual
    tokens than the longest are padded with rows that no template refers to.

    Args:
        frozen: names of the tasks that are not trained: constant tables, which `set_frozen` sets.

    Attributes:
        trainable: the templates of the other tasks.
    """

    def __init__(
        self, config: TransformerConfig, templates: list[TaskTemplate], frozen: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(config=config)
        self.names = [table_name(template) for template in templates]
        self.longest = max(template.total_virtual_tokens for template in templates)
        self.trainable = [template for template in templates if template.taskname not in frozen]
        self.frozen_tables = nn.Module()
        for template in templates:
            if template.taskname in frozen:
                rows = torch.empty(template.total_virtual_tokens, config.hidden_size)
                self.frozen_tables.register_buffer(table_name(template), rows)

    def forward(self) -> Tensor:
        tables = dict(self.frozen_tables.named_buffers())
        if self.trainable:
            tables |= zip(map(table_name, self.trainable), self.tables(), strict=True)
        return torch.stack([nn.functional.pad(tables[n], (0, 0, 0, self.longest - len(tables[n]))) for n in self.names])

    @abstractmethod
    def tables(self) -> list[Tensor]:
        """The virtual tokens [n, hidden] of each task in `trainable`."""

    @torch.no_grad()
    def set_frozen(self, template: TaskTemplate, table: Tensor) -> None:
        """Set the table of a frozen task to the first rows of `table` [n or more, hidden]."""
        rows = self.frozen_tables.get_buffer(table_name(template))
        rows.copy_(table[: len(rows)])

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw each whole weight from a generator seeded by its name and take this rank's part."""
        for shard in self.shards():
            if not shard.key.startswith(_FROZEN_ON_DISK):
                shard.data.copy_(self.draw(shard, named_generator(seed, shard.key))[shard.global_slice()])

    def shards(self) -> list[ShardedTensor]:
        """Every table and weight held by this rank, by its name in a checkpoint."""
        return [replace(one, key=_stored_name(one.key)) for one in megatron_shards(self, prefix="prompts.")]

    @abstractmethod
    def draw(self, shard: ShardedTensor, generator: torch.Generator) -> Tensor:
        """The initial value of the whole tensor that `shard` is a part of."""


def _stored_name(key: str) -> str:
    return _FROZEN_ON_DISK + key.removeprefix(_FROZEN) if key.startswith(_FROZEN) else key


def table_name(template: TaskTemplate) -> str:
    """A task's key in a module tree: a dot would start a new level there, and "copy" is already taken by a method."""
    return "task_" + template.taskname.replace("%", "%25").replace(".", "%2E")


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """U(-bound, bound), fp32."""
    return torch.rand(shape, generator=generator) * (2 * bound) - bound


def xavier_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """N(0, 2 / (rows + columns)), fp32: torch.nn.init.xavier_normal_ of a table, as NeMo's PromptEmbedding starts."""
    return torch.randn(shape, generator=generator) * math.sqrt(2.0 / sum(shape))


def linear_bound(inputs: int) -> float:
    """The bound of torch.nn.Linear's default initialisation, for weight and bias alike."""
    return 1.0 / math.sqrt(inputs)
