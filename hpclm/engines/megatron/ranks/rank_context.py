"""What every task is given."""

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
        """Let rank 0 do `work` while the others wait; its error is raised on every rank, so none waits for ever."""
        outcome: list[BaseException | None] = [None]
        if self.groups.rank == 0:
            try:
                work()
            except Exception as error:
                outcome = [error]
        shared = [None if outcome[0] is None else (type(outcome[0]), str(outcome[0]))]
        dist.broadcast_object_list(shared, src=0)
        if shared[0] is None:
            return
        if outcome[0] is not None:
            raise outcome[0]
        raise PeerError(f"rank 0 failed: {shared[0][1]}")
