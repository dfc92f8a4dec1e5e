"""Cancelling runs."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence

from hpclm.core.errors import HpclmError
from hpclm.core.locks import exclusive
from hpclm.core.states import StageState
from hpclm.runs.moved_run import original, refuse_others
from hpclm.runs.record import Run, read_run
from hpclm.runs.status import RunStatus, query_of, status_of
from hpclm.schedulers.interface import RunQuery, scheduler_of

_WAIT_S = 30.0


def cancel(run: Run) -> list[str]:
    """Ask the scheduler to cancel every unfinished stage; returns their names. Raises what `cancel_all` raises."""
    return cancel_all([run])[0]


def cancel_all(runs: Sequence[Run]) -> list[list[str]]:
    """Cancel the unfinished stages of runs of one site, in one request; returns each one's, in their order.

    The requests are recorded first, so that status can distinguish them from a cancel by somebody else; where they
    cannot be (a full disk), the jobs are cancelled all the same. Raises SchedulerError, and HpclmError for another
    user's run and for a copy of a run, whose jobs are the original's.
    """
    for run in runs:
        there = original(run)
        if there is not None:
            raise HpclmError(f"{run.paths.root} is a copy of the run in {there}, whose jobs these are; cancel that one")
        refuse_others(run, "cancel")
    with contextlib.ExitStack() as stack:
        for run in runs:
            busy = f"run {run.record.run}: another command is resuming it; try again when it has finished"
            with contextlib.suppress(OSError):
                stack.enter_context(exclusive(run.paths.lock, busy, wait_s=_WAIT_S))
        return _cancel([read_run(run.paths.root) for run in runs])


def _cancel(runs: Sequence[Run]) -> list[list[str]]:
    wanted, queries, ended = [], list[RunQuery](), []
    for run, status in zip(runs, status_of(runs), strict=True):
        live = [stage.name for stage in status.stages if not stage.state.is_over]
        ended.append(live)
        if live:
            wanted.append(_asked(run, status, live))
            queries.append(query_of(wanted[-1], live))
        waiting = _waiting_after_the_end(run, [stage.name for stage in status.stages if stage.name not in live])
        if waiting:
            queries.append(query_of(run, waiting))
            live += waiting
    unsaved = [run for run in wanted if not _saved(run)]
    if queries:
        scheduler_of(runs[0].record.site).cancel(queries)
    for run in unsaved:
        _saved(run)
    return ended


def _waiting_after_the_end(run: Run, stages: list[str]) -> list[str]:
    """Stages that are over and whose job waits all the same: Slurm held it after a failed launch, and it was done by
    another job since."""
    scheduler = scheduler_of(run.record.site)
    if not scheduler.has_job_ids or not stages:
        return []
    infos = scheduler.query([query_of(run, stages)]).infos
    found = ((stage, infos.get((run.paths.root, stage))) for stage in stages)
    return [stage for stage, info in found if info is not None and info.state is StageState.PENDING]


def _asked(run: Run, status: RunStatus, live: list[str]) -> Run:
    """The run with the request in its record, and the ids of jobs that status found."""
    record = run.record
    for submit in run.record.submits:
        if any(run.record.last_submit(stage).number == submit.number for stage in live):
            ids = {stage.name: stage.job_id for stage in status.stages if stage.job_id and stage.name in submit.stages}
            record = record.with_submit(
                dataclasses.replace(submit, cancelled_at=time.time(), job_ids={**submit.job_ids, **ids})
            )
    return Run(run.paths, record)


def _saved(run: Run) -> bool:
    try:
        run.save(run.record)
    except OSError:
        return False
    return True
