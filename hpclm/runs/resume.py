"""Submitting the unfinished stages of a run again; they continue from their last complete checkpoint."""

from __future__ import annotations

import dataclasses
import time

from hpclm.errors import HpclmError, SchedulerError, SiteError
from hpclm.runs.record import Run, SubmitRecord
from hpclm.runs.status import status_of
from hpclm.runs.submit import start
from hpclm.scheduler.discovery import discover, misfits
from hpclm.scheduler.jobs import OVER, StageJob


def resume(run: Run) -> tuple[Run, list[str]]:
    """Submit what is not complete, with the code and the plan the run began with; returns the stages submitted.

    Raises HpclmError when everything is complete or something still runs, SiteError when it does not fit any more.
    """
    (status,) = status_of([run])
    active = [stage for stage in status.stages if stage.state not in OVER]
    if any(stage.state == "unknown" for stage in active) and status.warnings:
        raise SchedulerError(f"run {run.record.run}: cannot tell whether it still runs: {'; '.join(status.warnings)}")
    if any(stage.state != "unknown" for stage in active):
        names = ", ".join(f"{stage.name} ({stage.state})" for stage in active)
        raise HpclmError(f"run {run.record.run} is not over: {names}; wait, or `hpclm cancel {run.record.run}` first")
    rest = [stage.name for stage in status.stages if stage.state != "completed"]
    if not rest:
        raise HpclmError(f"run {run.record.run} is complete; there is nothing to resume")
    number = run.record.submits[-1].number + 1
    jobs = [_again(run.record.stage(name).job, number, rest) for name in rest]
    offer = discover(run.record.site, gpu=False, container=False)
    problems = misfits(offer, jobs)
    if problems:
        raise SiteError("\n".join(problems))
    submit = SubmitRecord(number, time.time(), tuple(rest))
    before = run
    run = run.save(run.record.with_submit(submit))
    try:
        return start(run, jobs), rest
    except SchedulerError:
        # Refused as a whole: the run is as it was. Taken back half way: the record says so, and stays.
        (now,) = (one for one in _reread(run).record.submits if one.number == number)
        if not now.job_ids:
            before.save(before.record)
        raise


def _again(job: StageJob, number: int, rest: list[str]) -> StageJob:
    """The same job under a new number, waiting only for stages that run with it."""
    parents = tuple(parent for parent in job.depends_on if parent in rest)
    return dataclasses.replace(job, submit=number, depends_on=parents)


def _reread(run: Run) -> Run:
    from hpclm.runs.record import read_run

    return read_run(run.paths.root)
