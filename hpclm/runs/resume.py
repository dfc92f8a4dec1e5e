"""Submitting the unfinished stages of a run again; they continue from their last complete checkpoint.

Stages that were never submitted, because the submit was killed between two of them, are
submitted too, after those that are still running.
"""

from __future__ import annotations

import dataclasses
import time

from hpclm.core import stage_result
from hpclm.core.errors import HpclmError, SchedulerError, SiteError
from hpclm.core.locks import exclusive
from hpclm.core.secrets import missing
from hpclm.core.states import StageState
from hpclm.runs.moved_run import refuse_others, settle
from hpclm.runs.record import Run, SubmitRecord, read_run
from hpclm.runs.rescaling import rescale
from hpclm.runs.status import StageStatus, status_of
from hpclm.runs.submit import start
from hpclm.runs.upgrade import upgrade
from hpclm.schedulers.interface import scheduler_of
from hpclm.schedulers.jobs import StageJob

SETTLED_S = 60.0


def resume(run: Run, nodes: int | None = None, devices_per_node: int | None = None) -> tuple[Run, list[str]]:
    """Submit what is not complete, with the original code and plan of the run; returns the stages submitted.

    Args:
        nodes, devices_per_node: others than before (`rescaling`).

    Raises HpclmError when everything is complete, a stage is still running or another command changes the run,
    SiteError if it no longer fits.
    """
    refuse_others(run, "resume")
    busy = f"run {run.record.run}: another command is resuming or cancelling it; see `hpclm status {run.record.run}`"
    with exclusive(run.paths.lock, busy):
        return _resume(read_run(run.paths.root), nodes, devices_per_node)


def _resume(run: Run, nodes: int | None, devices_per_node: int | None) -> tuple[Run, list[str]]:
    (status,) = status_of([run])
    run = read_run(run.paths.root)  # status may have found jobs whose ids were not recorded
    active = [stage for stage in status.stages if not stage.state.is_over]
    if any(stage.state is StageState.UNKNOWN for stage in active) and status.warnings:
        raise SchedulerError(
            f"run {run.record.run}: cannot find out whether it is still running: {'; '.join(status.warnings)}"
        )
    _refuse_a_submit_under_way(run, active)
    alive = {stage.name: stage.job_id for stage in active if stage.state is not StageState.UNKNOWN and stage.job_id}
    never = [stage.name for stage in active if stage.state is StageState.UNKNOWN and stage.job_id is None]
    if any(stage.state is not StageState.UNKNOWN for stage in active) and not never:
        names = ", ".join(f"{stage.name} ({stage.state})" for stage in active)
        raise HpclmError(f"run {run.record.run} is not over: {names}; wait, or `hpclm cancel {run.record.run}` first")
    rest = never if alive else [stage.name for stage in status.stages if stage.state is not StageState.COMPLETED]
    if not rest:
        raise HpclmError(f"run {run.record.run} is complete; there is nothing to resume")
    run = settle(run)
    for name in rest:
        stage_result.set_aside(run.paths.stage(name))
    if nodes is not None or devices_per_node is not None:
        if alive:
            raise HpclmError(
                f"run {run.record.run} is still running: {', '.join(alive)}; wait, or `hpclm cancel` it first"
            )
        run = rescale(upgrade(run), rest, nodes, devices_per_node)
    number = run.record.submits[-1].number + 1
    jobs = [_again(run.record.stage(name).job, number, [*rest, *alive]) for name in rest]
    if not alive:
        run = upgrade(run)
    scheduler = scheduler_of(run.record.site)
    capabilities = scheduler.capabilities(run.record.site, gpu=False, container=False)
    problems = [*scheduler.check_fit(capabilities, jobs), *missing(run.record.site.secrets)]
    if problems:
        raise SiteError("\n".join(problems))
    submit = SubmitRecord(number, time.time(), tuple(rest))
    before = run
    run = run.save(run.record.with_submit(submit))
    try:
        return start(run, jobs, {name: str(job_id) for name, job_id in alive.items()}), rest
    except SchedulerError:
        # Refused completely: the run is unchanged. Cancelled after a partial submit: the record says so and is kept.
        (now,) = (one for one in read_run(run.paths.root).record.submits if one.number == number)
        if not now.job_ids:
            before.save(before.record)
        raise


def _again(job: StageJob, number: int, rest: list[str]) -> StageJob:
    """The same job under a new number, depending only on stages that are submitted with it or still running."""
    parents = tuple(parent for parent in job.depends_on if parent in rest)
    return dataclasses.replace(job, submit=number, depends_on=parents)


def _refuse_a_submit_under_way(run: Run, active: list[StageStatus]) -> None:
    """A job may appear a moment after its submit was killed: a stage that seems missing is not submitted twice."""
    for stage in active:
        submit = run.record.last_submit(stage.name)
        wait = submit.at + SETTLED_S - time.time()
        if stage.state is StageState.UNKNOWN and stage.job_id is None and submit.error is None and wait > 0:
            raise HpclmError(
                f"run {run.record.run}: stage {stage.name} may be in the middle of a submit; try again in {wait:.0f} s"
            )
