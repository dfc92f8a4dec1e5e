"""Cancelling runs."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence

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
    # a resume that is under way has jobs that status does not show yet
    with contextlib.suppress(OSError), exclusive(run.paths.lock, _busy(run), wait_s=_WAIT_S):
        pass
    return cancel_all([run])[0]


def _busy(run: Run) -> str:
    return f"run {run.record.run}: another command is resuming it; try again when it has finished"


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
    queries = list[RunQuery]()
    unsaved, ended, over = list[tuple[Run, RunStatus, list[str]]](), [], list[tuple[int, Run, list[str]]]()
    for place, (run, status) in enumerate(zip(runs, status_of(runs), strict=True)):
        live = [stage.name for stage in status.stages if not stage.state.is_over]
        ended.append(live)
        over.append((place, run, [stage.name for stage in status.stages if stage.name not in live]))
        if live:
            now = _recorded(run, status, live)
            if now is None:
                now = _asked(run, status, live)
                unsaved.append((run, status, live))
            queries.append(query_of(now, live))
    for place, run, stages in _waiting_after_the_end(over):
        queries.append(query_of(run, stages))
        ended[place] = [*ended[place], *stages]
    if queries:
        scheduler_of(runs[0].record.site).cancel(queries)
    for run, status, live in unsaved:
        _recorded(run, status, live)
    return ended


def _recorded(run: Run, status: RunStatus, live: list[str]) -> Run | None:
    """The run with the request in its record; None where that cannot be written. Another command may have changed the
    record since: it is read again under the run's lock. Raises HpclmError where that command takes long."""
    try:
        with exclusive(run.paths.lock, _busy(run), wait_s=_WAIT_S):
            now = _asked(read_run(run.paths.root), status, live)
            return now.save(now.record)
    except OSError:
        return None


def _asked(run: Run, status: RunStatus, live: list[str]) -> Run:
    """The run with the request in its record, and the ids of jobs that status found."""
    record = run.record
    for submit in run.record.submits:
        if any(run.record.last_submit(stage).number == submit.number for stage in live):
            ids = {stage.name: stage.job_id for stage in status.stages if stage.job_id and stage.name in submit.stages}
            record = record.with_submit(
                dataclasses.replace(submit, cancelled_at=time.time(), job_ids={**ids, **submit.job_ids})
            )
    return Run(run.paths, record)


def _waiting_after_the_end(over: Sequence[tuple[int, Run, list[str]]]) -> list[tuple[int, Run, list[str]]]:
    """Stages that are over and whose job waits all the same: Slurm held it after a failed launch, and it was done by
    another job since. One question for all runs."""
    asked = [(place, run, stages) for place, run, stages in over if stages]
    if not asked:
        return []
    scheduler = scheduler_of(asked[0][1].record.site)
    if not scheduler.has_job_ids:
        return []
    infos = scheduler.query([query_of(run, stages) for _, run, stages in asked]).infos
    states: Mapping[object, StageState] = {key: info.state for key, info in infos.items()}
    found = [
        (place, run, [stage for stage in stages if states.get((run.paths.root, stage)) is StageState.PENDING])
        for place, run, stages in asked
    ]
    return [(place, run, stages) for place, run, stages in found if stages]
