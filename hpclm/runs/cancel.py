"""Cancelling a run."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from hpclm.core.errors import HpclmError
from hpclm.core.locks import exclusive
from hpclm.runs.moved_run import original, refuse_others
from hpclm.runs.record import Run, read_run
from hpclm.runs.status import query_of, status_of
from hpclm.schedulers.interface import scheduler_of

_WAIT_S = 30.0


def cancel(run: Run) -> list[str]:
    """Ask the scheduler to cancel every unfinished stage; returns their names.

    The request is recorded first, so that status can distinguish it from a cancel by somebody else; where it cannot be
    (a full disk), the jobs are cancelled all the same. Raises SchedulerError, and HpclmError for a copy of a run, whose
    jobs are the original's.
    """
    there = original(run)
    if there is not None:
        raise HpclmError(f"{run.paths.root} is a copy of the run in {there}, whose jobs these are; cancel that one")
    refuse_others(run, "cancel")
    with contextlib.ExitStack() as stack:
        busy = f"run {run.record.run}: another command is resuming it; try again when it has finished"
        with contextlib.suppress(OSError):
            stack.enter_context(exclusive(run.paths.lock, busy, wait_s=_WAIT_S))
        return _cancel(read_run(run.paths.root))


def _cancel(run: Run) -> list[str]:
    (status,) = status_of([run])
    live = [stage.name for stage in status.stages if not stage.state.is_over]
    if not live:
        return []
    record = run.record
    for submit in run.record.submits:
        if any(run.record.last_submit(stage).number == submit.number for stage in live):
            ids = {stage.name: stage.job_id for stage in status.stages if stage.job_id and stage.name in submit.stages}
            record = record.with_submit(
                dataclasses.replace(submit, cancelled_at=time.time(), job_ids={**submit.job_ids, **ids})
            )
    wanted = Run(run.paths, record)
    try:
        wanted.save(record)
    except OSError:
        scheduler_of(record.site).cancel(query_of(wanted, live))
        with contextlib.suppress(OSError):
            wanted.save(record)
        return live
    scheduler_of(record.site).cancel(query_of(wanted, live))
    return live
