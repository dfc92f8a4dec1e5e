"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): one trainable table of virtual tokens per task."""

from __future__ import annotations

import math

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hpclm.adapters.ranks.soft_prompts import SoftPrompts, table_name, xavier_normal
from hpclm.core.spec import TaskTemplate


class PromptTuning(SoftPrompts):
    """A [virtual tokens, hidden] table a task: random (Xavier, as NeMo's PromptTable) or a text's embeddings."""

    def __init__(
        self, config: TransformerConfig, templates: list[TaskTemplate], frozen: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(config, templates, frozen)
        # this name is part of the tensors' names in a checkpoint
        self.free = nn.ParameterDict(
            {
                table_name(template): nn.Parameter(torch.empty(template.total_virtual_tokens, config.hidden_size))
                for template in self.trainable
            }
        )

    def tables(self) -> list[Tensor]:
        return list(self.free.values())

    def draw(self, shard: ShardedTensor, generator: torch.Generator) -> Tensor:
        return xavier_normal(shard.global_shape, generator)

    @torch.no_grad()
    def set_from_text(self, template: TaskTemplate, embeddings: Tensor) -> None:
        """Set a task's table to the embeddings [n, hidden] of its init text, clipped or repeated to its length."""
        table = self.free[table_name(template)]
        repeats = math.ceil(len(table) / len(embeddings))
        table.copy_(embeddings.repeat(repeats, 1)[: len(table)])
