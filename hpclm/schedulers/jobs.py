"""Jobs: what a scheduler is asked to start, and what it reports afterwards."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from hpclm.containers import LaunchSpec
from hpclm.core.states import StageState

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class StageJob:
    """One stage as a job.

    Attributes:
        submit: which submit of the run this is, from 1.
        stage_dir: the stage's folder; `<stage_dir>/slurm` and `job.sh` belong to the scheduler.
        payload: folder of pure Python that goes on PYTHONPATH.
        tasks_per_node: ranks per node, one per device.
        memory_gib: a node's memory; None: all of it.
        environment: exported before the ranks start.
        python: argv of the ranks' interpreter.
        time_limit_min: minutes of one job.
        total_time_min: minutes the stage may run in all, over as many jobs as that takes.
        depends_on: stages of the same submit that must complete first.
        preflight_s: time limit of the preflight check in seconds; 0: no check.
        bad_node_list: file with the bad-node list.
        exclude: nodes it must not run on.
        packages: what the ranks' interpreter must have.
        precision: of the ranks' arithmetic; None: unknown.
        device_memory_gib: estimate of the most loaded rank; None: unknown.
    """

    run: str
    stage: str
    submit: int
    title: str
    stage_dir: str
    payload: str
    device: Device
    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    memory_gib: float | None
    time_limit_min: int
    total_time_min: int
    launch: LaunchSpec
    python: tuple[str, ...]
    in_container: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    preflight_s: int = 0
    bad_node_list: str = "/dev/null"
    exclude: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    precision: str | None = None
    device_memory_gib: float | None = None

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def node_memory_gib(self) -> float:
        """What the ranks of a node need by the estimate; on CPU that is the node's own memory. 0: unknown."""
        return self.tasks_per_node * (self.device_memory_gib or 0.0)

    @property
    def attempt(self) -> str:
        """The attempt argument of the worker; it adds the restart count itself."""
        return f"{self.submit:03d}"

    @property
    def tag(self) -> str:
        """What identifies this job if its id was not recorded: unique, and stored as the job's comment."""
        return job_tag(self.run, self.stage, self.submit)

    @property
    def job_name(self) -> str:
        """The name shown in squeue; newlines and slashes would break parsers, so they are replaced."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.title}.{self.stage}")[:64]

    @property
    def warning_s(self) -> int:
        """Seconds before the time limit at which the ranks are asked to save: a tenth of it, 10 to 120."""
        return max(10, min(120, self.time_limit_min * 6))


@dataclass(frozen=True)
class ArrayJob:
    """Many similar runs as one job array.

    Attributes:
        folder: `<folder>/<index>` points to the run of a member.
        first: the index in the sweep of the array's first member.
        max_running: how many run at the same time, None: as many as fit.
    """

    sweep: str
    folder: str
    first: int
    count: int
    max_running: int | None = None


def job_tag(run: str, stage: str, submit: int) -> str:
    return f"hpclm:{run}/{stage}/{submit:03d}"


def array_tag(array: ArrayJob, stage: str) -> str:
    """The tag of an array of a sweep: its first member's index in the sweep, from which `member_tag` counts."""
    return f"hpclm:{array.sweep}+{array.first}/{stage}/001"


def member_run(sweep: str, index: int) -> str:
    """The run of one member of a sweep."""
    return f"{sweep}.{index:03d}"


def member_tag(comment: str, job_id: str) -> str:
    """The tag of the job `job_id`: its comment, or for member `12_3` of an array the one of the member's run."""
    _, _, index = job_id.partition("_")
    if not index:
        return comment
    run, _, rest = comment.removeprefix("hpclm:").partition("/")
    sweep, _, first = run.rpartition("+")
    return f"hpclm:{member_run(sweep, int(first) + int(index))}/{rest}" if first.isdecimal() else comment


@dataclass(frozen=True)
class JobInfo:
    """What a scheduler last reported about a job. Times are unix seconds; None is unknown.

    Attributes:
        state: hpclm's state; `raw_state`: the scheduler's.
        reason: why, in words.
        signal: that ended the job's script; 0 if none did, or the scheduler does not know.
        reason_is_final: whether the scheduler itself knows why the ranks ended: the ranks' own records count less.
    """

    job_id: str
    state: StageState
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    nodes: str = ""
    tag: str = ""
    raw_state: str = ""
    signal: int = 0
    reason_is_final: bool = False
