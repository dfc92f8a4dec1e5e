"""A rank's place, and torch.distributed over our rendezvous."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from hpclm.core.ranks.seeds import named_seed
from hpclm.worker.rank_identity import RankFacts

COLLECTIVE_TIMEOUT_MIN = 30


@dataclass(frozen=True)
class DataGroup:
    """All ranks are data-parallel. `device` is where this rank's tensors live."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


def join(store: dist.Store, facts: RankFacts, device: torch.device, *, backend: str | None = None) -> DataGroup:
    """The group of all ranks. What DeepSpeed and transformers read of a rank is in the environment."""
    gpu = device.type == "cuda"
    names = {"RANK": facts.rank, "WORLD_SIZE": facts.world_size, "LOCAL_RANK": facts.local_rank}
    os.environ.update({name: str(value) for name, value in names.items()})
    dist.init_process_group(
        # what is offloaded to the host is reduced there
        backend or ("cpu:gloo,cuda:nccl" if gpu else "gloo"),
        store=store,
        rank=facts.rank,
        world_size=facts.world_size,
        timeout=timedelta(minutes=COLLECTIVE_TIMEOUT_MIN),
        device_id=device if gpu else None,
    )
    return DataGroup(facts.rank, facts.world_size, facts.local_rank, device)


def seed_step(seed: int, step: int, group: DataGroup) -> None:
    """Seed torch from (seed, step, rank), so that a resumed run draws the same dropout."""
    torch.manual_seed(named_seed(seed, f"step {step} rank {group.rank}") % (1 << 31))
