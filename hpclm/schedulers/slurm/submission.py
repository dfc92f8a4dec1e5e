"""Submits jobs to Slurm so that none is lost: each accepted job is recorded at once, and
cancelled if the rest is refused."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

from hpclm.containers.image_cache import Import, job_script
from hpclm.core.errors import SchedulerError
from hpclm.core.files import write_text
from hpclm.core.layout import StagePaths
from hpclm.core.site import Site
from hpclm.core.sweep_layout import MEMBER, ArrayPaths
from hpclm.schedulers.interface import Note, Submission, SweepSubmission
from hpclm.schedulers.jobs import ArrayJob, StageJob
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.job_script import render, render_array, submission_argv

_IMPORT_MIN = 120


def start(submission: Submission, note: Note) -> None:
    """Submit the stages one after the other. Raises SchedulerError; then the jobs already accepted are cancelled."""
    taken: dict[str, str] = {}
    for job in submission.jobs:
        known = {**submission.parents, **taken}
        try:
            if job.depends_on:
                verify([known[parent] for parent in job.depends_on], submission.user)
            stage = StagePaths(Path(job.stage_dir))
            # a job whose log folder is missing fails without a word
            stage.job_folder.mkdir(parents=True, exist_ok=True)
            script = stage.script
            write_text(script, render(job, submission.site))
            taken[job.stage] = client.sbatch([*submission_argv(job, known, submission.wait_for), str(script)])
        except (SchedulerError, KeyboardInterrupt) as error:
            why = str(error) or "interrupted"
            lost = _found_by_tag(submission, job, taken, why, note)
            if lost is not None:
                taken[job.stage] = lost
            if lost is None or isinstance(error, KeyboardInterrupt):
                _take_back(submission, job, taken, why, note)
        note(dict(taken), None)


def verify(job_ids: list[str], user: str) -> None:
    """Raises SchedulerError unless the controller knows every id: a job with afterok on
    an unknown id starts immediately."""
    known = {info.job_id for info in client.jobs_of([user])}
    missing = [job_id for job_id in job_ids if job_id not in known]
    if missing:
        raise SchedulerError(f"the controller does not know job {', '.join(missing)}, on which the next stage depends")


def _found_by_tag(submission: Submission, job: StageJob, taken: dict[str, str], why: str, note: Note) -> str | None:
    """The id of a job that Slurm accepted although sbatch failed (its answer was lost), if there is one.

    Raises SchedulerError if that cannot be determined; the record is then kept, so that status can check again.
    """
    try:
        return next((info.job_id for info in client.jobs_of([submission.user]) if info.tag == job.tag), None)
    except SchedulerError as error:
        note(dict(taken), f"stage {job.stage}: {why}")
        raise SchedulerError(
            f"stage {job.stage}: {why}\nand whether the job was accepted anyway cannot be determined ({error}); "
            f"`hpclm status {submission.paths.name}` checks again"
        ) from None


def _take_back(submission: Submission, job: StageJob, taken: dict[str, str], why: str, note: Note) -> None:
    """Cancel the stages already accepted, record why, and raise."""
    if not taken:
        raise SchedulerError(why)
    error = f"stage {job.stage}: {why}"
    note(dict(taken), error)
    client.scancel(taken.values())
    raise SchedulerError(f"{error}\nwhat was submitted ({', '.join(taken)}) was cancelled; see {submission.paths.root}")


def start_sweep(sweep: SweepSubmission) -> None:
    """One job array per stage, or several if the cluster's largest array size is exceeded."""
    sweep.paths.logs.mkdir()
    size = client.max_array_size() - 1
    for first in range(0, len(sweep.members), size):
        _submit_arrays(sweep, first, sweep.members[first : first + size])


def _submit_arrays(sweep: SweepSubmission, first: int, members: Sequence[Submission]) -> None:
    """One array per stage for these members.

    Their ids are recorded at the end, what Slurm has accepted until then in any case; after a kill in between `status`
    finds them by their tags.
    """
    paths = sweep.paths.array(first)
    paths.root.mkdir()
    for index, member in enumerate(members):
        paths.member(index).root.symlink_to(Path("..") / member.paths.name)
    array = ArrayJob(sweep.paths.name, str(paths.root), first, len(members), sweep.max_running)
    for stage in (job.stage for job in members[0].jobs):
        specs = (sweep.spec(first + index, stage) for index in range(len(members)))
        paths.specs(stage).write_bytes(gzip.compress("".join(specs).encode(), mtime=0))
        _write_member_scripts(paths, stage, members)
    taken: dict[str, str] = {}
    try:
        for job in members[0].jobs:
            after = [taken[parent] for parent in job.depends_on]
            taken[job.stage] = _submit_array(job, members[0].site, array, paths, after)
    finally:
        for index in range(len(members) if taken else 0):
            sweep.note(first + index, {stage: f"{array_id}_{index}" for stage, array_id in taken.items()})


def _write_member_scripts(paths: ArrayPaths, stage: str, members: Sequence[Submission]) -> None:
    """One script for all members, with a word for the name of their runs; those whose jobs differ by more have their
    own. A job is compared, not its script, which takes a hundred times as long to make."""
    common: str | None = None
    for member in members:
        (job,) = (one for one in member.jobs if one.stage == stage)
        general = repr(job).replace(member.paths.name, MEMBER)
        if common is None and MEMBER not in repr(job):
            common = general
            write_text(paths.member_script(stage), render(job, member.site).replace(member.paths.name, MEMBER))
        if general != common or MEMBER in repr(job):
            write_text(StagePaths(Path(job.stage_dir)).script, render(job, member.site))


def _submit_array(job: StageJob, site: Site, array: ArrayJob, paths: ArrayPaths, after: list[str]) -> str:
    """Submit a stage of a sweep; returns the array's id. Member i waits for member i of the arrays in `after`."""
    script = paths.script(job.stage)
    write_text(script, render_array(job, site, array))
    dependency = [f"--dependency=aftercorr:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return client.sbatch([*dependency, str(script)])


def submit_import(wanted: Import, site: Site) -> str:
    """Submit the import of an image as a separate job; returns its id."""
    options = {key: value for key in ("partition", "account", "qos") if (value := getattr(site, key))}
    log = wanted.target.with_name(f"{wanted.target.stem}.log")
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    script = wanted.target.with_name(f".{wanted.target.stem}.job.sh")
    write_text(script, job_script(wanted, {**options, "time": str(_IMPORT_MIN)}, log))
    return client.sbatch([str(script)])
