"""What a rank writes about itself into `attempts/<attempt>/ranks/<rank>.json`. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.failures import FailureKind, failure_kind
from hpclm.core.states import RankState


@dataclass
class RankReport:
    """That a rank began, and how it ended.

    Attributes:
        started_at: unix seconds, as `ended_at`.
        kind: the kind of failure, `ok` without one; None while it runs.
        where: `file:line` that raised.
        beats: its heartbeats until a stall; the rank with the fewest is furthest behind.
    """

    rank: int
    node: str = ""
    pid: int = 0
    started_at: float | None = None
    state: str = RankState.RUNNING
    ended_at: float | None = None
    kind: str | None = None
    exit_code: int | None = None
    error_type: str | None = None
    message: str = ""
    where: str | None = None
    traceback: str | None = None
    beats: int = 0

    @property
    def failure(self) -> FailureKind:
        return failure_kind(self.kind)

    @property
    def ended_badly(self) -> bool:
        return self.state in (RankState.FAILED, RankState.STOPPED)
