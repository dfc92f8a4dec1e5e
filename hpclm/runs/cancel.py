"""Cancelling a run."""

from __future__ import annotations

import dataclasses
import time

from hpclm.runs.record import Run
from hpclm.runs.status import query_of, status_of
from hpclm.schedulers.interface import scheduler_of


def cancel(run: Run) -> list[str]:
    """Ask the scheduler to cancel every unfinished stage; returns their names.

    The request is recorded first, so that status can distinguish it from a cancel by somebody else.
    Raises SchedulerError.
    """
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
    run = run.save(record)
    scheduler_of(run.record.site).cancel(query_of(run, live))
    return live
