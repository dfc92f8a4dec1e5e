"""What all soft prompts have in common."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from hpclm.worker.checkpoints.shards import sharded_tensors
from hpclm.worker.engine.seeds import named_generator


class SoftPrompts(MegatronModule):
    """Virtual tokens of several tasks, fp32 whatever the base model's precision.

    Calling it gives the table [tasks, virtual tokens, hidden] in the order of the recipe's task templates; tasks with
    fewer virtual tokens than the longest are padded with rows that no template refers to.
    """

    @abstractmethod
    def forward(self) -> Tensor: ...

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw every weight whole from a generator named after it and keep this rank's part."""
        for shard in self.shards():
            shard.data.copy_(self.draw(shard, named_generator(seed, shard.key))[shard.global_slice()])

    def shards(self) -> list[ShardedTensor]:
        return sharded_tensors(self, prefix="prompts.")

    @abstractmethod
    def draw(self, shard: ShardedTensor, generator: torch.Generator) -> Tensor:
        """The initial value of the whole tensor that `shard` is a part of."""


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    """U(-bound, bound), fp32."""
    return torch.rand(shape, generator=generator) * (2 * bound) - bound


def linear_bound(inputs: int) -> float:
    """The bound of torch.nn.Linear's default initialisation, for weight and bias alike."""
    return 1.0 / math.sqrt(inputs)
