"""This machine as a scheduler of hpclm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hpclm.containers.image_cache import Import
from hpclm.containers.runtime import runtime_here
from hpclm.core.errors import SchedulerError, SiteError
from hpclm.core.processes import cpus_here, memory_here_gib
from hpclm.core.site import Site
from hpclm.schedulers.capabilities import SiteCapabilities, missing_packages
from hpclm.schedulers.commands import output_of
from hpclm.schedulers.interface import Answers, JobScript, Note, RunQuery, Submission, Survey, SweepSubmission
from hpclm.schedulers.jobs import JobInfo, StageJob
from hpclm.schedulers.local import executor
from hpclm.schedulers.local.local_records import QueueMember


class Local:
    """A supervisor process that outlives the shell starts the ranks; it needs no ids, accounts or partitions."""

    name = "local"
    has_job_ids = False
    is_shared = False
    runs_preflight = False
    makes_member_folders = False
    rank_variables = ()
    outside_reason = ""

    def capabilities(self, site: Site, *, gpu: bool, container: bool) -> SiteCapabilities:
        return SiteCapabilities(site.with_runtime(lambda: runtime_here(output_of)) if container else site)

    def check_fit(self, capabilities: SiteCapabilities, jobs: Sequence[StageJob]) -> list[str]:
        return [*missing_packages(jobs), *(problem for job in jobs for problem in _problems(job))]

    def notes(self, jobs: Sequence[StageJob]) -> list[str]:
        several = any(job.nodes > 1 for job in jobs)
        return ["site local has one node, this machine: the ranks of all nodes run on it"] if several else []

    def threads(self, cpus_asked: int | None, cpus: int, ranks: int) -> int:
        # more threads than its share of the machine make ranks wait for each other
        return cpus if cpus_asked else max(1, cpus_here() // ranks)

    def script(self, job: StageJob, site: Site, parents: Mapping[str, str]) -> JobScript:
        return JobScript((), executor.render(job, site))

    def start(self, submission: Submission, note: Note) -> None:
        paths = submission.paths.local(submission.jobs[0].submit)
        executor.submit(paths, submission.jobs, submission.site, submission.payload)

    def start_sweep(self, sweep: SweepSubmission) -> None:
        """One process, which outlives the shell, starts the members' supervisors, a few at a time."""
        queue = []
        for member in sweep.members:
            paths = member.paths.local(1)
            executor.write_jobs(paths, member.jobs, member.site)
            queue.append(QueueMember(str(paths.root), str(member.payload)))
        executor.submit_queue(sweep.paths, queue, sweep.max_running or 1)

    def submit_import(self, wanted: Import, site: Site) -> str | None:
        return None

    def query(self, runs: Sequence[RunQuery]) -> Answers:
        found: dict[tuple[Path, str], JobInfo] = {}
        for run in runs:
            submits = {stage.submit: executor.look(run.paths, stage.submit) for stage in run.stages}
            for stage in run.stages:
                if stage.stage in submits[stage.submit]:
                    found[run.paths.root, stage.stage] = submits[stage.submit][stage.stage]
        return Answers(found)

    def cancel(self, runs: Sequence[RunQuery]) -> None:
        for run in runs:
            for submit in {stage.submit for stage in run.stages}:
                executor.cancel(run.paths.local(submit))

    def survey(
        self, capabilities: SiteCapabilities, runs_dir: Path, asked: str, wait_s: float, log: Callable[[str], None]
    ) -> Survey:
        raise SiteError(f"--nodes: site {capabilities.site.name} has no scheduler; choose a Slurm site with --site")

    def hazards(self, site: Site) -> list[tuple[str, str]]:
        return []

    def draft_profile(self) -> str:
        raise SchedulerError("this machine needs no profile; choose a cluster's scheduler")


def _problems(job: StageJob) -> Iterator[str]:
    if job.launch.srun_args:
        yield (
            f"stage {job.stage}: its container runtime is part of Slurm's srun, but ranks start here without it; "
            "choose another as container.runtime, or use --site slurm"
        )
    if job.device != "gpu":
        room = memory_here_gib()
        if room is not None and (needed := job.node_memory_gib) > room:
            yield (
                f"stage {job.stage}: its ranks need about {needed:.0f} GiB, this machine has {room:.0f}; lower "
                "batch.micro or the sequence length, or use a smaller model"
            )
        return
    here = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if job.nodes > 1:
        yield f"stage {job.stage}: {job.nodes} nodes with GPUs needed, this site has one; use --site slurm or --nodes 1"
    elif job.tasks_per_node > here:
        yield (
            f"stage {job.stage}: {job.tasks_per_node} GPUs needed, this machine has {here}; use --site slurm, "
            "lower --devices-per-node, or --set resources.device=cpu for a small model"
        )


SCHEDULER = Local()
