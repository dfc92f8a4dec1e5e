"""Which rank this process is, as the local executor or Slurm says."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankFacts:
    """A rank's place: `rank` of `world_size`, `local_rank` on node number `node_rank` called `node`.

    `restart` counts the ranks' starts within one submit, from 0.
    """

    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    node: str
    restart: int


_OURS = ("HPCLM_RANK", "HPCLM_WORLD_SIZE", "HPCLM_LOCAL_RANK", "HPCLM_NODE_RANK")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")


def rank_facts(environment: Mapping[str, str] = os.environ) -> RankFacts:
    """Read the rank from HPCLM_* (our local executor) or SLURM_* (srun). Raises RuntimeError where neither is set."""
    names = next((names for names in (_OURS, _SLURM) if all(name in environment for name in names)), None)
    if names is None:
        raise RuntimeError(f"not started by hpclm or srun: neither {', '.join(_OURS)} nor {', '.join(_SLURM)} are set")
    rank, world_size, local_rank, node_rank = (int(environment[name]) for name in names)
    return RankFacts(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        node_rank=node_rank,
        node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        restart=int(environment.get("HPCLM_RESTART") or 0),
    )
