"""What the local executor's processes tell each other in files: jobs, queue and state. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpclm.core.processes import ProcessIdentity
from hpclm.core.secrets import Secret
from hpclm.core.states import StageState


@dataclass(frozen=True)
class LocalStage:
    """One stage of `jobs.json`: what each rank runs, and its limits.

    Attributes:
        time_limit_s: seconds that all attempts together may take.
        warning_s: how many seconds before the limit the ranks are told to save.
    """

    stage: str
    stage_dir: str
    submit: int
    depends_on: list[str]
    world_size: int
    tasks_per_node: int
    time_limit_s: float
    warning_s: float
    command: list[str]
    environment: dict[str, str]
    secrets: dict[str, Secret] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalJobs:
    """`jobs.json`: a submit's stages in order.

    Attributes:
        kill_wait_s: seconds between SIGTERM and SIGKILL.
        grace_s: seconds that the other ranks have after one has failed.
    """

    stages: list[LocalStage]
    kill_wait_s: float
    grace_s: float


@dataclass
class StageProgress:
    """One stage of `state.json`. Times are in unix seconds, the exit codes in rank order."""

    state: str = StageState.PENDING
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    exit_codes: list[int | None] = field(default_factory=list)


@dataclass
class SupervisorState(ProcessIdentity):
    """`state.json`: the supervisor's process, and its stages by name."""

    host: str = ""
    ended_at: float | None = None
    updated_at: float = 0.0
    stages: dict[str, StageProgress] = field(default_factory=dict)


@dataclass(frozen=True)
class QueueMember:
    """A sweep's member in `queue.json`: the folder of its first submit, and its code."""

    local: str
    payload: str


@dataclass(frozen=True)
class Queue:
    """`queue.json`: a sweep's members in order, and how many run at the same time."""

    members: list[QueueMember]
    max_running: int
