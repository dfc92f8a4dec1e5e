"""Slurm as a scheduler of hpclm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpclm.containers.image_cache import Import
from hpclm.containers.runtime import runtime_here
from hpclm.core.errors import SchedulerError, SiteError
from hpclm.core.site import NO_RUNTIME, Site
from hpclm.schedulers import commands
from hpclm.schedulers.capabilities import SiteCapabilities, missing_packages
from hpclm.schedulers.interface import (
    Answers,
    JobScript,
    Note,
    RunQuery,
    StageQuery,
    Submission,
    Survey,
    SweepSubmission,
)
from hpclm.schedulers.jobs import JobInfo, StageJob
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.fit import partition_problems
from hpclm.schedulers.slurm.job_script import JOB_VARIABLES, render, submission_argv
from hpclm.schedulers.slurm.partitions import partitions
from hpclm.schedulers.slurm.submission import start, start_sweep, submit_import


class Slurm:
    """Jobs through sbatch, squeue, scancel and, where there is accounting, sacct."""

    name = "slurm"
    has_job_ids = True
    is_shared = True
    runs_preflight = True
    makes_member_folders = True
    rank_variables = JOB_VARIABLES
    outside_reason = "outside hpclm (scancel, or an administrator)"

    def capabilities(self, site: Site, *, gpu: bool, container: bool) -> SiteCapabilities:
        try:
            found = partitions()
        except SchedulerError as error:
            return SiteCapabilities(site, None, str(error))
        wanted = site.partition
        chosen = next((one for one in found if (one.name == wanted if wanted else one.default)), None)
        if chosen is None:
            names = ", ".join(sorted(one.name for one in found)) or "none"
            what = f"partition {wanted!r} does not exist" if wanted else "the cluster has no default partition"
            return SiteCapabilities(site, None, f"{what}; set one in the site profile (partitions: {names})")
        if site.cpus_per_device is None and gpu and chosen.cpus_per_node and chosen.gpus_per_node:
            site = dataclasses.replace(site, cpus_per_device=max(1, chosen.cpus_per_node // chosen.gpus_per_node))
        return SiteCapabilities(site.with_runtime(self.runtime_here) if container else site, chosen)

    @staticmethod
    def runtime_here() -> str:
        """The container runtime of this login node."""
        return runtime_here(commands.output_of)

    def check_fit(self, capabilities: SiteCapabilities, jobs: Sequence[StageJob]) -> list[str]:
        missing = missing_packages(jobs)
        if capabilities.trouble is not None:
            return [*missing, capabilities.trouble]
        return [*missing, *(problem for job in jobs for problem in partition_problems(capabilities, job))]

    def notes(self, jobs: Sequence[StageJob]) -> list[str]:
        return [
            f"stage {job.stage}: {job.total_time_min} min over jobs of {job.time_limit_min} min, one after the other"
            for job in jobs
            if job.time_limit_min < job.total_time_min
        ]

    def threads(self, cpus_asked: int | None, cpus: int, ranks: int) -> int:
        return cpus

    def script(self, job: StageJob, site: Site, parents: Mapping[str, str]) -> JobScript:
        return JobScript(("sbatch", *submission_argv(job, parents), "job.sh"), render(job, site))

    def start(self, submission: Submission, note: Note) -> None:
        start(submission, note)

    def start_sweep(self, sweep: SweepSubmission) -> None:
        start_sweep(sweep)

    def submit_import(self, wanted: Import, site: Site) -> str | None:
        return submit_import(wanted, site)

    def query(self, runs: Sequence[RunQuery]) -> Answers:
        """A job is identified by its tag; by its id alone only if the answer has no tag (accounting)."""
        asked = [(run, stage) for run in runs for stage in run.stages]
        if not asked:
            return Answers()
        ids = [stage.job_id for _, stage in asked if stage.job_id]
        try:
            jobs = client.jobs_of({run.user for run in runs}, ids)
        except SchedulerError as error:
            return Answers(trouble=str(error))
        by_tag = {job.tag: job for job in jobs if job.tag}
        by_id = {job.job_id: job for job in jobs}
        found = {(run.paths.root, stage.stage): _job_of(stage, by_tag, by_id) for run, stage in asked}
        return Answers({key: info for key, info in found.items() if info is not None})

    def cancel(self, runs: Sequence[RunQuery]) -> None:
        client.scancel(stage.job_id for run in runs for stage in run.stages if stage.job_id)

    def survey(
        self, capabilities: SiteCapabilities, runs_dir: Path, asked: str, wait_s: float, log: Callable[[str], None]
    ) -> Survey:
        from hpclm.schedulers.slurm.survey import survey

        if capabilities.partition is None:
            raise SiteError(f"--nodes: {capabilities.trouble}")
        return survey(capabilities.site, capabilities.partition.name, runs_dir, asked, wait_s, log)

    def hazards(self, site: Site) -> list[tuple[str, str]]:
        """A warning to a job reaches every process of its steps under linuxproc, and image file systems end by it."""
        try:
            tracker = client.process_tracker()
        except SchedulerError:
            return []
        if tracker != "proctrack/linuxproc" or site.container.runtime == NO_RUNTIME:
            return []
        means = (
            "a warning before the time limit also ends what mounts the image (squashfuse), and ranks may die while "
            "they save; ask for proctrack/cgroup or pgid, or use images unpacked to a folder"
        )
        return [(tracker, means)]

    def draft_profile(self) -> str:
        from hpclm.schedulers.slurm.profile_draft import look, profile_text

        return profile_text(look())


def _job_of(stage: StageQuery, by_tag: Mapping[str, JobInfo], by_id: Mapping[str, JobInfo]) -> JobInfo | None:
    if stage.job_id is None:
        return by_tag.get(stage.tag)
    info = by_id.get(stage.job_id)
    return info if info is not None and info.tag in (stage.tag, "") else None


SCHEDULER = Slurm()
