"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): one free table of virtual tokens a task."""

from __future__ import annotations

import math

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hpclm.plan.spec import TaskTemplate
from hpclm.worker.prompts.base import SoftPrompts, uniform


class PromptTuning(SoftPrompts):
    """A [virtual tokens, hidden] table a task: random (Xavier, as NeMo's PromptTable) or a text's embeddings."""

    def __init__(self, config: TransformerConfig, templates: list[TaskTemplate]) -> None:
        super().__init__(config=config)
        self.longest = max(template.total_virtual_tokens for template in templates)
        self.tables = nn.ParameterDict(
            {
                table_name(template): nn.Parameter(torch.empty(template.total_virtual_tokens, config.hidden_size))
                for template in templates
            }
        )

    def forward(self) -> Tensor:
        return torch.stack(
            [nn.functional.pad(table, (0, 0, 0, self.longest - len(table))) for table in self.tables.values()]
        )

    def draw(self, shard: ShardedTensor, generator: torch.Generator) -> Tensor:
        rows, hidden = shard.global_shape
        return uniform((rows, hidden), math.sqrt(6.0 / (rows + hidden)), generator)

    @torch.no_grad()
    def start_from(self, template: TaskTemplate, embeddings: Tensor) -> None:
        """Begin a task from the embeddings [n, hidden] of its init text, clipped or repeated to the table's length."""
        table = self.tables[table_name(template)]
        repeats = math.ceil(len(table) / len(embeddings))
        table.copy_(embeddings.repeat(repeats, 1)[: len(table)])


def table_name(template: TaskTemplate) -> str:
    """A task's key in a module tree: a dot would start a new level there, and "copy" is already taken by a method."""
    return "task_" + template.taskname.replace("%", "%25").replace(".", "%2E")
