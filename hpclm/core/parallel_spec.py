"""How a model is divided over ranks, and what is computed again to save memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Parallel axes from the innermost, whose neighbours are consecutive ranks, to the outermost, by megatron-core's names
# (megatron/core/parallel_state.py, initialize_model_parallel).
RankOrder = Literal["tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"]


@dataclass(frozen=True)
class ParallelSpec:
    """The split. world_size = tensor · context · data · pipeline; ranks are numbered by `order`.

    Attributes:
        virtual_pipeline: chunks of layers that a pipeline stage has (interleaved schedule).
        first_stage_layers, last_stage_layers: of the first and the last stage, where they have fewer or more than the
            others.
        account_for_embedding, account_for_loss: the embedding or the output layer counts as a layer where layers are
            divided over the stages.
        expert: ranks that share a layer's experts, which are other ranks than those of tensor and pipeline: expert ·
            expert_tensor · pipeline divides world_size.
        expert_tensor: ranks that share each expert; None: as many as `tensor`.
        distributed_optimizer: the optimizer's state is divided over data-parallel ranks (ZeRO-1).
        overlap: gradients are sent while the backward pass computes, weights while the forward pass does.
    """

    tensor: int
    pipeline: int
    data: int
    world_size: int
    nodes: int
    devices_per_node: int
    sequence_parallel: bool = False
    context: int = 1
    virtual_pipeline: int = 1
    first_stage_layers: int | None = None
    last_stage_layers: int | None = None
    account_for_embedding: bool = False
    account_for_loss: bool = False
    distributed_optimizer: bool = False
    overlap: bool = False
    expert: int = 1
    expert_tensor: int | None = None
    order: RankOrder = "tp-cp-ep-dp-pp"

    @property
    def expert_tensor_size(self) -> int:
        """`expert_tensor`, its default resolved."""
        return self.tensor if self.expert_tensor is None else self.expert_tensor

    @property
    def expert_data(self) -> int:
        """Ranks that have the same experts; of a split that planning refuses, 1."""
        return max(1, self.world_size // (self.expert_tensor_size * self.expert * self.pipeline))


RecomputeModule = Literal["core_attn", "layernorm", "mlp", "moe"]


@dataclass(frozen=True)
class RecomputeSpec:
    """Activation checkpointing, as megatron-core's TransformerConfig has it.

    `selective` recomputes `modules` of every layer: `core_attn` (the default), `layernorm` (results of the norms),
    `mlp`, `moe` (a layer's experts); `full` keeps only the inputs of layers: `uniform` one in `num_layers`, `block`
    those of the first `num_layers` of each pipeline stage (the rest keep everything).
    """

    granularity: Literal["selective", "full"]
    method: Literal["uniform", "block"] | None = None
    num_layers: int | None = None
    modules: tuple[RecomputeModule, ...] | None = None

    @property
    def recomputed(self) -> frozenset[str]:
        """Of `selective`, the modules."""
        return frozenset(self.modules or ("core_attn",)) if self.granularity == "selective" else frozenset()
