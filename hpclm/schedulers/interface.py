"""The interface of a scheduler. Each has its own folder and is found by its name.

To add one: a class with these methods, and an entry `name = "module:OBJECT"` in the group `hpclm.schedulers`. Its name
is then a site of its own (`--site NAME`) and the value of `scheduler:` in a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hpclm.containers.image_cache import Import
from hpclm.core.layout import RunPaths
from hpclm.core.registries import SCHEDULERS
from hpclm.core.site import Site
from hpclm.core.sweep_layout import SweepPaths
from hpclm.schedulers.capabilities import SiteCapabilities
from hpclm.schedulers.jobs import JobInfo, StageJob

# Called with the job ids by stage so far, and why the submit stopped if it did.
Note = Callable[[dict[str, str], str | None], None]


@dataclass(frozen=True)
class JobScript:
    """A stage's script, and the command that submits it (empty: none)."""

    argv: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Submission:
    """Jobs of one run to be started, in order.

    Attributes:
        payload: folder of the code that runs them.
        parents: job ids, by stage, of an earlier submit's jobs on which these depend.
        wait_for: jobs that those without a parent wait for.
    """

    paths: RunPaths
    user: str
    site: Site
    jobs: tuple[StageJob, ...]
    payload: Path
    parents: Mapping[str, str] = field(default_factory=dict)
    wait_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepSubmission:
    """Many similar runs.

    Attributes:
        members: each one's submission.
        spec: the spec of a member's stage in one line, by the member's index and the stage.
        note: takes a member's index and its job ids.
    """

    paths: SweepPaths
    members: Sequence[Submission]
    max_running: int | None
    spec: Callable[[int, str], str]
    note: Callable[[int, dict[str, str]], None]


@dataclass(frozen=True)
class StageQuery:
    """The newest job of a stage. `job_id`: None if it was not recorded; `tag` finds it then."""

    stage: str
    submit: int
    job_id: str | None
    tag: str


@dataclass(frozen=True)
class RunQuery:
    """Stages of one run to query."""

    paths: RunPaths
    user: str
    stages: tuple[StageQuery, ...]


@dataclass(frozen=True)
class Answers:
    """What a scheduler reports, by run folder and stage. `trouble`: why it could not be queried."""

    infos: Mapping[tuple[Path, str], JobInfo] = field(default_factory=dict)
    trouble: str | None = None


@dataclass(frozen=True)
class Survey:
    """What nodes reported about themselves.

    Attributes:
        facts: by node, the JSON that `nodes.node_facts` wrote there.
        silent: why the others reported none.
        busy: those of `silent` that were only in use.
        expected_gpus: by node, how many GPUs it should show.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    expected_gpus: dict[str, int] = field(default_factory=dict)


@runtime_checkable
class Scheduler(Protocol):
    """One way to start jobs.

    Attributes:
        has_job_ids: whether jobs have ids that are written into the record.
        is_shared: whether many users query it, so that it is queried less and less often while a run is followed.
        runs_preflight: whether its jobs check their nodes before each start.
        makes_member_folders: whether a job of a sweep makes the folder of its stage when it starts, with the spec in
            it; otherwise they are there before.
        rank_variables: what an image must pass on to a rank; the first five tell its rank, world size, local rank, node
            rank and node name. Empty where the job sets HPCLM_RANK and the others itself.
        outside_reason: the reason shown for a job that was cancelled from outside.
    """

    name: str
    has_job_ids: bool
    is_shared: bool
    runs_preflight: bool
    makes_member_folders: bool
    rank_variables: tuple[str, ...]
    outside_reason: str

    def capabilities(self, site: Site, *, gpu: bool, container: bool) -> SiteCapabilities:
        """Fill in what the profile does not set. Never raises: a dry run also works without a scheduler."""

    def check_fit(self, capabilities: SiteCapabilities, jobs: Sequence[StageJob]) -> list[str]:
        """Everything that prevents these jobs from ever starting, each with what is available and what to change."""

    def notes(self, jobs: Sequence[StageJob]) -> list[str]:
        """Notes for the user that are not errors."""

    def threads(self, cpus_asked: int | None, cpus: int, ranks: int) -> int:
        """CPU threads of a rank. `cpus_asked`: by the recipe; `cpus`: what it gets; `ranks`: of the whole stage."""

    def script(self, job: StageJob, site: Site, parents: Mapping[str, str]) -> JobScript:
        """The exact text that a submit uses. Raises SiteError for text that cannot be quoted."""

    def start(self, submission: Submission, note: Note) -> None:
        """Start the jobs. `note` is called after each accepted job. Raises SchedulerError when one is refused."""

    def start_sweep(self, sweep: SweepSubmission) -> None:
        """Start all members. Raises SchedulerError."""

    def submit_import(self, wanted: Import, site: Site) -> str | None:
        """Import an image in a separate job; returns its id, None if this scheduler has no such jobs."""

    def query(self, runs: Sequence[RunQuery]) -> Answers:
        """The state of jobs, one query for all runs. Never raises if a scheduler does not respond."""

    def cancel(self, runs: Sequence[RunQuery]) -> None:
        """Cancel these stages' jobs, in one request if it can. Raises SchedulerError."""

    def survey(
        self, capabilities: SiteCapabilities, runs_dir: Path, asked: str, wait_s: float, log: Callable[[str], None]
    ) -> Survey:
        """Facts of nodes (`all`, a number, or names). Raises SiteError if there are no nodes to query."""

    def hazards(self, site: Site) -> list[tuple[str, str]]:
        """What in the cluster's own settings disturbs runs: each with its consequence and what to do. For `doctor`."""

    def draft_profile(self) -> str:
        """A site profile from what the scheduler reports, as YAML with comments. Raises SchedulerError, SiteError."""


def scheduler_of(site: Site) -> Scheduler:
    """The scheduler of a site. Raises UnknownNameError for one whose package is not installed here."""
    return SCHEDULERS.get(site.scheduler)
