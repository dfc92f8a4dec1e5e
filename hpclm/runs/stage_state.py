"""The state of a stage and its reason, from the scheduler's answer and the ranks' files."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.exit_codes import ExitCode
from hpclm.core.failures import FailureKind
from hpclm.core.layout import StagePaths
from hpclm.core.rank_report import RankReport
from hpclm.core.stage_result import damage_of, is_complete
from hpclm.core.states import StageState
from hpclm.recovery.rank_failures import Failure, first_failure, last_output, rank_reports
from hpclm.runs import attempt_history
from hpclm.runs.record import Record
from hpclm.schedulers.interface import scheduler_of
from hpclm.schedulers.jobs import JobInfo

# slurmctld checks time limits twice a minute, so its warning and its end may be that late.
_LIMIT_SLACK_S = 65.0
# How ranks end when the script of their job does.
_ENDED_FROM_OUTSIDE = (FailureKind.SIGNAL, FailureKind.VANISHED)


@dataclass(frozen=True)
class CurrentState:
    """The state of a stage and the reason; when it began and ended, unix seconds; the rank that failed first."""

    state: StageState
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    rank: int | None = None


def current_state(record: Record, stage: str, paths: StagePaths, info: JobInfo | None, asked: bool) -> CurrentState:
    """The state of the newest submit of a stage.

    Args:
        info: what its scheduler reports; None if it does not know the job.
        asked: whether the scheduler could be queried.
    """
    if is_complete(paths):
        times = (info.started_at, info.ended_at) if info else (None, None)
        return CurrentState(StageState.COMPLETED, "", *times)
    damage = damage_of(paths)
    if damage is not None and (info is None or info.state.is_over):
        reason = f"{damage}; `hpclm resume` completes the stage again from its last checkpoint"
        return CurrentState(StageState.FAILED, reason)
    if info is None:
        return _forgotten(record, stage, paths, asked)
    return _with_times(_from_info(record, stage, paths, info), info)


def _with_times(found: CurrentState, info: JobInfo) -> CurrentState:
    return dataclasses.replace(found, started_at=info.started_at, ended_at=info.ended_at)


def _from_info(record: Record, stage: str, paths: StagePaths, info: JobInfo) -> CurrentState:
    """From the scheduler's answer, and if the stage has ended, from what the job and its ranks recorded."""
    submit = record.last_submit(stage)
    if info.state is StageState.PENDING:
        again = attempt_history.why_again(paths, submit.number)
        return CurrentState(info.state, f"restarting: {again}; {info.reason}" if again else info.reason)
    if not info.state.is_over:
        return CurrentState(info.state, "" if info.state is StageState.RUNNING else info.reason)
    if info.state is StageState.SKIPPED:
        return CurrentState(info.state, _skipped(record, stage, paths))
    ended = attempt_history.ending(paths, submit.number) if info.state is not StageState.CANCELLED else None
    if ended is not None:
        return CurrentState(ended.state, _reason(record, stage, ended), rank=ended.rank)
    failure = _failure(paths, submit.number, submit.job_ids.get(stage))
    rank = failure.rank if failure else None
    if info.state is StageState.CANCELLED:
        return CurrentState(info.state, _cancelled(record, stage, info), rank=rank)
    if info.state is StageState.TIMEOUT:
        return CurrentState(info.state, _timeout(record, stage), rank=rank)
    if info.state is StageState.NODE_FAIL:
        reason = f"a node of {info.nodes or 'the job'} failed or was taken down"
        return CurrentState(info.state, reason, rank=rank)
    if info.state is StageState.PREEMPTED:
        return CurrentState(info.state, "the scheduler gave its nodes to a job of higher priority", rank=rank)
    if info.state is StageState.COMPLETED:
        return CurrentState(StageState.FAILED, _no_result(), rank=rank)
    return _failed(record, stage, info, failure)


def _no_result() -> str:
    return "every rank ended without an error, but none wrote result.json"


def _failed(record: Record, stage: str, info: JobInfo, failure: Failure | None) -> CurrentState:
    if info.reason == f"exit code {ExitCode.DISK.value}" and (failure is None or failure.kind is FailureKind.VANISHED):
        return CurrentState(StageState.FAILED, ExitCode.DISK.meaning)
    if info.signal and (failure is None or failure.rank is None or failure.kind in _ENDED_FROM_OUTSIDE):
        return CurrentState(info.state, _killed(info.signal))
    if failure is None:
        return CurrentState(info.state, info.reason or "no rank wrote a record")
    if failure.kind is FailureKind.SIGNAL and info.reason_is_final:
        return CurrentState(info.state, info.reason, rank=failure.rank)
    if failure.kind is FailureKind.SIGNAL:
        # The ranks saved and stopped before the scheduler had to kill them, so the scheduler only reports a failed job.
        if record.last_submit(stage).cancelled_at is not None:
            return CurrentState(StageState.CANCELLED, _cancelled(record, stage, info), rank=failure.rank)
        if _near_limit(record, stage, info.started_at, info.ended_at):
            return CurrentState(StageState.TIMEOUT, _timeout(record, stage), rank=failure.rank)
        return CurrentState(StageState.CANCELLED, "a signal from outside hpclm stopped the ranks", rank=failure.rank)
    state = StageState.OUT_OF_MEMORY if failure.kind is FailureKind.MEMORY else info.state
    return CurrentState(state, failure.reason, rank=failure.rank)


def _killed(number: int) -> str:
    try:
        name = f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        name = f"signal {number}"
    return (
        f"{name} ended the job's script; hpclm sends it none: an administrator, the node's out-of-memory killer or a "
        "process of yours did; `hpclm resume` continues from the last checkpoint"
    )


def _forgotten(record: Record, stage: str, paths: StagePaths, asked: bool) -> CurrentState:
    """The scheduler does not know the job (or could not be queried): use the run's own files."""
    submit = record.last_submit(stage)
    job_id = submit.job_ids.get(stage)
    if job_id is not None:
        left = _exit_file(paths.job_exit(job_id))
        if left is not None:
            return _from_exit_file(record, stage, paths, *left)
    if submit.error is not None and job_id is None:
        state = StageState.CANCELLED if stage != submit.stages[0] else StageState.FAILED
        return CurrentState(state, f"not submitted: {submit.error}")
    if not asked:
        return CurrentState(StageState.UNKNOWN, "the scheduler could not be queried")
    if submit.cancelled_at is not None:
        return CurrentState(StageState.CANCELLED, _cancelled(record, stage, None))
    parent = _bad_parent(record, stage, paths)
    if parent is not None:
        return CurrentState(StageState.SKIPPED, f"stage {parent} did not complete")
    if not scheduler_of(record.site).has_job_ids:
        return CurrentState(StageState.UNKNOWN, "its supervisor has not reported yet")
    if job_id is None:
        reason = "not submitted: the submit was interrupted before this stage; `hpclm resume` submits it"
        return CurrentState(StageState.UNKNOWN, reason)
    failure = first_failure(_reports(paths, submit.number))
    if failure is not None:
        return CurrentState(StageState.FAILED, failure.reason, rank=failure.rank)
    return CurrentState(StageState.UNKNOWN, f"the scheduler no longer knows job {job_id}, and the job left no record")


def _from_exit_file(
    record: Record, stage: str, paths: StagePaths, code: int, at: float, signalled: bool
) -> CurrentState:
    submit = record.last_submit(stage)
    job_id = submit.job_ids[stage]
    ended = attempt_history.ending(paths, submit.number)
    if ended is not None:
        return CurrentState(ended.state, _reason(record, stage, ended), None, at, ended.rank)
    failure = _failure(paths, submit.number, job_id)
    began = (one.started_at for one in _reports(paths, submit.number) if one.started_at)
    info = JobInfo(job_id, StageState.FAILED, f"exit code {code}", min(began, default=None), at)
    rank = failure.rank if failure else None
    if signalled and submit.cancelled_at is None and _near_limit(record, stage, info.started_at, at):
        found = CurrentState(StageState.TIMEOUT, _timeout(record, stage), rank=rank)
    elif signalled:
        outside = dataclasses.replace(info, reason=scheduler_of(record.site).outside_reason)
        found = CurrentState(StageState.CANCELLED, _cancelled(record, stage, outside), rank=rank)
    elif code == 0:
        found = CurrentState(StageState.FAILED, _no_result(), rank=rank)
    else:
        found = _failed(record, stage, info, failure)
    return _with_times(found, info)


def _exit_file(path: Path) -> tuple[int, float, bool] | None:
    try:
        code, at, word = path.read_text().split()
        return int(code), float(at), word == "TERM"
    except (OSError, ValueError):
        return None


def _failure(paths: StagePaths, submit: int, job_id: str | None) -> Failure | None:
    reports = _reports(paths, submit)
    if reports:
        return first_failure(reports)
    # any rank's: the one that could not start may have ended the others before they printed anything
    logs = sorted(attempt.logs.glob("*.log")) if (attempt := paths.latest_attempt(submit)) else []
    if job_id is not None:
        logs.append(paths.batch_log(job_id))
    said = last_output(logs)
    reason = f"no rank left a record; the log ends: {said}"
    return None if said is None else Failure(None, FailureKind.ERROR, reason)


def _reports(paths: StagePaths, submit: int) -> list[RankReport]:
    attempt = paths.latest_attempt(submit)
    return rank_reports(attempt) if attempt else []


def _cancelled(record: Record, stage: str, info: JobInfo | None) -> str:
    submit = record.last_submit(stage)
    if submit.error is not None:
        return f"cancelled, because a later part of the submit failed: {submit.error}"
    if submit.cancelled_at is not None:
        return "by `hpclm cancel`"
    if info is not None and info.reason_is_final:
        return info.reason
    return scheduler_of(record.site).outside_reason


def _reason(record: Record, stage: str, ended: attempt_history.Ending) -> str:
    return _timeout(record, stage) if ended.state is StageState.TIMEOUT else ended.reason


def _timeout(record: Record, stage: str) -> str:
    minutes = record.stage(stage).job.total_time_min
    return f"the time limit of {minutes} min was reached; `hpclm resume` continues from the last checkpoint"


def _skipped(record: Record, stage: str, paths: StagePaths) -> str:
    submit = record.last_submit(stage)
    if submit.image_jobs and not record.stage(stage).job.depends_on:
        return f"its image could not be imported (job {', '.join(submit.image_jobs)}); see the log next to the image"
    parents = [one for one in record.stage(stage).job.depends_on if not is_complete(paths.run.stage(one))]
    return f"stage {' and '.join(parents)} did not complete" if parents else "a job it depends on did not complete"


def _bad_parent(record: Record, stage: str, paths: StagePaths) -> str | None:
    """A parent of the same submit that ended without completing; only its own files are read."""
    submit = record.last_submit(stage)
    for parent in record.stage(stage).job.depends_on:
        there = paths.run.stage(parent)
        if parent in submit.stages and not is_complete(there):
            job_id = submit.job_ids.get(parent)
            if job_id is not None and there.job_exit(job_id).exists():
                return parent
    return None


def _near_limit(record: Record, stage: str, started: float | None, ended: float | None) -> bool:
    if started is None or ended is None:
        return False
    job = record.stage(stage).job
    return ended - started >= job.time_limit_min * 60 - job.warning_s - _LIMIT_SLACK_S
