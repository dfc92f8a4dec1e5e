"""The context that every task receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from hpclm.core.layout import StagePaths
from hpclm.core.spec import StageSpec
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.worker.report import PeerError, Progress
from hpclm.worker.signals import StopFlag


@dataclass(frozen=True)
class StageContext:
    """A stage as seen by one rank."""

    spec: StageSpec
    paths: StagePaths
    groups: Groups
    progress: Progress
    stop: StopFlag

    def on_first_rank(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 while the others wait; its error is raised on every rank,
        so that none waits for ever."""
        own: Exception | None = None
        if self.groups.rank == 0:
            try:
                work()
            except Exception as error:
                own = error
        message = [None if own is None else str(own)]
        dist.broadcast_object_list(message, src=0)
        if own is not None:
            raise own
        if message[0] is not None:
            raise PeerError(f"rank 0 failed: {message[0]}")
