"""Which rank this process is, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hpclm.core.node_name import VARIABLES, node_name


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


def rank_facts(environment: Mapping[str, str] = os.environ) -> RankFacts:
    """Read the rank from HPCLM_RANK and the others, or from the variables that HPCLM_RANK_VARIABLES names.

    Raises RuntimeError where they are not set.
    """
    scheduler = tuple(environment.get(VARIABLES, "").split())
    names = next((n for n in (_OURS, scheduler[:4]) if len(n) == 4 and all(one in environment for one in n)), None)
    if names is None:
        raise RuntimeError(f"not started by hpclm: {', '.join(scheduler[:4] or _OURS)} are not all set")
    rank, world_size, local_rank, node_rank = (int(environment[name]) for name in names)
    return RankFacts(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        node_rank=node_rank,
        node=node_name(environment),
        restart=int(environment.get("HPCLM_RESTART") or 0),
    )
