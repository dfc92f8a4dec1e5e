"""The states of a stage and of a run."""

from __future__ import annotations

from hpclm.core.words import Word


class StageState(Word):
    """The states that users see, most important first, for a run whose stages have different states."""

    FAILED = "failed"
    OUT_OF_MEMORY = "out-of-memory"
    NODE_FAIL = "node-fail"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"
    RUNNING = "running"
    PENDING = "pending"
    COMPLETED = "completed"

    @property
    def is_over(self) -> bool:
        """Whether the stage has ended, in any state."""
        return self not in (StageState.RUNNING, StageState.PENDING, StageState.UNKNOWN)

    @property
    def is_bad(self) -> bool:
        """Whether the stage has ended without completing."""
        return self.is_over and self is not StageState.COMPLETED


def stage_state(word: object) -> StageState:
    """The state of that name, `UNKNOWN` for any other name."""
    try:
        return StageState(word)
    except (ValueError, TypeError):
        return StageState.UNKNOWN


class RankState(Word):
    """The state in a rank's own record."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
