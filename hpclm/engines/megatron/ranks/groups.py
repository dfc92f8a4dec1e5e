"""Process groups: torch.distributed over our rendezvous, then megatron-core's grid of parallel groups on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.ranks.seeds import named_seed

COLLECTIVE_TIMEOUT_MIN = 30


@dataclass(frozen=True)
class Groups:
    """This rank's place in the grid. `device` is where its tensors live."""

    rank: int
    world_size: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    tensor_size: int
    pipeline_size: int
    data_size: int
    device: torch.device
    context_rank: int = 0
    context_size: int = 1
    virtual_size: int = 1

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def chunks(self) -> list[int | None]:
        """This rank's chunks of layers as megatron-core numbers them; [None] without the interleaved schedule."""
        return [None] if self.virtual_size == 1 else list(range(self.virtual_size))

    @property
    def is_reporter(self) -> bool:
        """True on the one rank that has the loss and logs it: last stage, first data, context and tensor rank."""
        return self.is_last_stage and self.data_rank == 0 and self.tensor_rank == 0 and self.context_rank == 0


def initialize(
    store: dist.Store, rank: int, parallel: ParallelSpec, device: torch.device, seed: int, *, backend: str | None = None
) -> Groups:
    """Join the process group through `store` and build Megatron's groups.

    Args:
        backend: of torch.distributed; None: the device's.
    """
    gpu = device.type == "cuda"
    dist.init_process_group(
        backend or ("nccl" if gpu else "gloo"),
        store=store,
        rank=rank,
        world_size=parallel.world_size,
        timeout=timedelta(minutes=COLLECTIVE_TIMEOUT_MIN),
        # NCCL then connects at once, where a mistake can be named, and makes the other groups from this one
        device_id=device if gpu else None,
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        order=parallel.order,
        distributed_timeout_minutes=COLLECTIVE_TIMEOUT_MIN,
        create_gloo_process_groups=False,
    )
    groups = Groups(
        rank=rank,
        world_size=parallel.world_size,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        tensor_size=parallel.tensor,
        pipeline_size=parallel.pipeline,
        data_size=parallel.data,
        device=device,
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel.context,
        virtual_size=parallel.virtual_pipeline,
    )
    seed_step(seed, 0, groups)
    return groups


def seed_step(seed: int, step: int, groups: Groups) -> None:
    """Seed every generator from (seed, step, stage); megatron-core adds the tensor rank where it must differ."""
    name = f"step {step} stage {groups.pipeline_rank}"
    # ranks that have other positions of the same rows
    name += f" context {groups.context_rank}" if groups.context_size > 1 else ""
    number = named_seed(seed, name) % (1 << 31)
    torch.manual_seed(number)
    tensor_parallel.model_parallel_cuda_manual_seed(number)
