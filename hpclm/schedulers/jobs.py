"""What a scheduler is asked to start, and what it says of it afterwards."""

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
        tasks_per_node: ranks a node, one a device.
        memory_gib: a node's memory; None: all of it.
        environment: exported before the ranks start.
        python: argv of the ranks' interpreter.
        time_limit_min: minutes of one job.
        total_time_min: minutes the stage may run in all, over as many jobs as that takes.
        depends_on: stages of the same submit that must end well first.
        preflight_s: seconds the check of the nodes before each start may take; 0: none.
        bad_node_list: file that remembers faulty nodes.
        exclude: nodes it must not run on.
        packages: what the ranks' interpreter must have.
        precision: of the ranks' arithmetic; None: not known.
        device_memory_gib: estimate of the most loaded rank; None: not known.
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
    def attempt(self) -> str:
        """The attempt argument of the worker; it adds the restart count itself."""
        return f"{self.submit:03d}"

    @property
    def tag(self) -> str:
        """What finds this job again when its id was not written down: unique, and carried as the job's comment."""
        return job_tag(self.run, self.stage, self.submit)

    @property
    def job_name(self) -> str:
        """For people who look at squeue; newlines and slashes in it would break parsers, so none can be in it."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", f"{self.title}.{self.stage}")[:64]

    @property
    def warning_s(self) -> int:
        """Seconds before the time limit at which the ranks are told to save: a tenth of it, 10 to 120."""
        return max(10, min(120, self.time_limit_min * 6))


@dataclass(frozen=True)
class ArrayJob:
    """Many runs alike as one job array.

    Attributes:
        folder: `<folder>/<index>` leads to the run of a member.
        first: the place in the sweep of the array's first member.
        max_running: how many run at once, None: as many as fit.
    """

    sweep: str
    folder: str
    first: int
    count: int
    max_running: int | None = None


def job_tag(run: str, stage: str, submit: int) -> str:
    return f"hpclm:{run}/{stage}/{submit:03d}"


def array_tag(array: ArrayJob, stage: str) -> str:
    """What an array of a sweep carries: its first member's place in the sweep, from which `member_tag` counts."""
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
    return f"hpclm:{member_run(sweep, int(first) + int(index))}/{rest}" if first.isdigit() else comment


@dataclass(frozen=True)
class JobInfo:
    """What a scheduler last said of a job. Times are unix seconds; None is unknown.

    Attributes:
        state: in our words; `raw_state`: in the scheduler's.
        reason: why, in words.
        reason_is_final: whether the scheduler itself knows why the ranks ended: what they say of it counts less.
    """

    job_id: str
    state: StageState
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    nodes: str = ""
    tag: str = ""
    raw_state: str = ""
    reason_is_final: bool = False
