"""From what a scheduler says and what the ranks left behind to one word and one reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.recovery.rank_failures import Failure, first_failure, last_words, rank_records
from hpclm.runs import attempt_history
from hpclm.runs.record import Record
from hpclm.schedulers.jobs import JobInfo
from hpclm.schedulers.slurm.words import pending_words, state_word

# slurmctld looks at time limits twice a minute, so its warning and its end are that much off.
_LIMIT_SLACK_S = 65.0


@dataclass(frozen=True)
class Verdict:
    """What a stage is, in one of `jobs.STATES`, and why, in words; when it began and ended, unix seconds."""

    state: str
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    rank: int | None = None


def judge(record: Record, stage: str, paths: StagePaths, info: JobInfo | None, asked: bool) -> Verdict:
    """The verdict on the newest submit of a stage.

    Args:
        info: what its scheduler says; None when it does not know the job.
        asked: whether the scheduler could be asked at all.
    """
    submit = record.last_submit(stage)
    if paths.result.exists():
        return Verdict("completed", "", info.started_at if info else None, info.ended_at if info else None)
    if info is None:
        return _forgotten(record, stage, paths, asked)
    word = info.state if record.scheduler == "local" else state_word(info.state)
    times = (info.started_at, info.ended_at)
    if word == "pending":
        waits = pending_words(info.reason) if record.scheduler == "slurm" else ""
        again = attempt_history.why_again(paths, submit.number)
        return Verdict("pending", f"starts again: {again}; {waits}" if again else waits, *times)
    if word in ("running", "unknown"):
        return Verdict(word, "" if word == "running" else f"the scheduler says {info.state}", *times)
    if "DependencyNeverSatisfied" in info.reason or word == "skipped":
        return Verdict("skipped", _skipped(record, stage, paths), *times)
    told = attempt_history.ending(paths, submit.number) if word != "cancelled" else None
    if told is not None:
        return Verdict(told.state, _reason(record, stage, told), *times, told.rank)
    failure = _failure(paths, submit.number, submit.job_ids.get(stage))
    rank = failure.rank if failure else None
    if word == "cancelled":
        return Verdict("cancelled", _cancelled(record, stage, info), *times, rank)
    if word == "timeout":
        return Verdict("timeout", _timeout(record, stage), *times, rank)
    if word == "node-fail":
        return Verdict("node-fail", f"a node of {info.nodes or 'the job'} failed or was taken down", *times, rank)
    if word == "preempted":
        return Verdict("preempted", "the scheduler gave its nodes to a job of higher priority", *times, rank)
    if word == "completed":
        return Verdict("failed", "every rank ended without an error, but none wrote result.json", *times, rank)
    return _failed(record, stage, info, failure, word)


def _failed(record: Record, stage: str, info: JobInfo, failure: Failure | None, word: str) -> Verdict:
    times = (info.started_at, info.ended_at)
    if failure is None:
        return Verdict(word, info.reason or "no rank left a word", *times)
    if failure.kind == "signal" and record.scheduler == "local":
        return Verdict(word, info.reason, *times, failure.rank)  # the supervisor knows why it told them to stop
    if failure.kind == "signal":
        # The ranks saved and stopped before the scheduler had to end them, so to it the job merely failed.
        if submit_cancelled(record, stage):
            return Verdict("cancelled", _cancelled(record, stage, info), *times, failure.rank)
        if _near_limit(record, stage, info.started_at, info.ended_at):
            return Verdict("timeout", _timeout(record, stage), *times, failure.rank)
        return Verdict("cancelled", "a signal from outside told the ranks to stop", *times, failure.rank)
    word = "out-of-memory" if failure.kind == "memory" else word
    return Verdict(word, failure.reason, *times, failure.rank)


def _forgotten(record: Record, stage: str, paths: StagePaths, asked: bool) -> Verdict:
    """The scheduler does not know the job (or could not be asked): the run's own files speak."""
    submit = record.last_submit(stage)
    job_id = submit.job_ids.get(stage)
    if record.scheduler == "slurm" and job_id is not None:
        left = _exit_file(paths.slurm_exit(job_id))
        if left is not None:
            return _from_exit_file(record, stage, paths, *left)
    if submit.error is not None and job_id is None:
        return Verdict("cancelled" if stage != submit.stages[0] else "failed", f"not submitted: {submit.error}")
    if not asked:
        return Verdict("unknown", "the scheduler could not be asked")
    if submit.cancelled_at is not None:
        return Verdict("cancelled", _cancelled(record, stage, None))
    parent = _bad_parent(record, stage, paths)
    if parent is not None:
        return Verdict("skipped", f"stage {parent} did not complete")
    if record.scheduler == "local":
        return Verdict("unknown", "its supervisor has written nothing yet")
    if job_id is None:
        return Verdict("unknown", "no such job: the submit was broken off before it; `hpclm resume` submits it")
    failure = first_failure(_records(paths, submit.number))
    if failure is not None:
        return Verdict("failed", failure.reason, rank=failure.rank)
    return Verdict("unknown", f"the scheduler no longer knows job {job_id}, and the job left no word")


def _from_exit_file(record: Record, stage: str, paths: StagePaths, code: int, at: float, signalled: bool) -> Verdict:
    submit = record.last_submit(stage)
    job_id = submit.job_ids[stage]
    told = attempt_history.ending(paths, submit.number)
    if told is not None:
        return Verdict(told.state, _reason(record, stage, told), None, at, told.rank)
    failure = _failure(paths, submit.number, job_id)
    started = min(
        (float(one["started_at"]) for one in _records(paths, submit.number) if one.get("started_at")), default=None
    )
    info = JobInfo(job_id, "FAILED", f"exit code {code}", started, at)
    rank = failure.rank if failure else None
    if signalled and submit.cancelled_at is None and _near_limit(record, stage, started, at):
        return Verdict("timeout", _timeout(record, stage), started, at, rank)
    if signalled:
        return Verdict("cancelled", _cancelled(record, stage, info), started, at, rank)
    if code == 0:
        return Verdict("failed", "every rank ended without an error, but none wrote result.json", started, at, rank)
    return _failed(record, stage, info, failure, "failed")


def _exit_file(path: Path) -> tuple[int, float, bool] | None:
    try:
        code, at, word = path.read_text().split()
        return int(code), float(at), word == "TERM"
    except (OSError, ValueError):
        return None


def _failure(paths: StagePaths, submit: int, job_id: str | None) -> Failure | None:
    records = _records(paths, submit)
    if records:
        return first_failure(records)
    # any rank's: the one that could not start may have ended the others before they said a word
    logs = sorted(attempt.logs.glob("*.log")) if (attempt := _attempt(paths, submit)) else []
    if job_id is not None:
        logs.append(paths.slurm_batch_log(job_id))
    words = last_words(logs)
    return None if words is None else Failure(None, "error", f"no rank left a record; the log ends: {words}")


def _records(paths: StagePaths, submit: int) -> list[dict[str, Any]]:
    attempt = _attempt(paths, submit)
    return rank_records(attempt) if attempt else []


def _attempt(paths: StagePaths, submit: int) -> AttemptPaths | None:
    return paths.latest_attempt(submit)


def submit_cancelled(record: Record, stage: str) -> bool:
    return record.last_submit(stage).cancelled_at is not None


def _cancelled(record: Record, stage: str, info: JobInfo | None) -> str:
    submit = record.last_submit(stage)
    if submit.error is not None:
        return f"taken back, since the submit failed half way: {submit.error}"
    if submit.cancelled_at is not None:
        return "by `hpclm cancel`"
    if record.scheduler == "local" and info is not None:
        return info.reason
    return "outside hpclm (scancel, or an administrator)"


def _reason(record: Record, stage: str, told: attempt_history.Ending) -> str:
    return _timeout(record, stage) if told.state == "timeout" else told.reason


def _timeout(record: Record, stage: str) -> str:
    minutes = record.stage(stage).job.total_time_min
    return f"the time limit of {minutes} min was reached; `hpclm resume` continues from the last checkpoint"


def _skipped(record: Record, stage: str, paths: StagePaths) -> str:
    stages = paths.root.parent
    submit = record.last_submit(stage)
    if submit.image_jobs and not record.stage(stage).job.depends_on:
        return f"its image could not be imported (job {', '.join(submit.image_jobs)}); see the log beside the image"
    parents = [one for one in record.stage(stage).job.depends_on if not StagePaths(stages / one).result.exists()]
    return f"stage {' and '.join(parents)} did not complete" if parents else "a job it depends on did not complete"


def _bad_parent(record: Record, stage: str, paths: StagePaths) -> str | None:
    """A parent of the same submit that is over and not complete; only its own files are asked."""
    submit = record.last_submit(stage)
    for parent in record.stage(stage).job.depends_on:
        there = StagePaths(paths.root.parent / parent)
        if parent in submit.stages and not there.result.exists():
            job_id = submit.job_ids.get(parent)
            if job_id is not None and there.slurm_exit(job_id).exists():
                return parent
    return None


def _near_limit(record: Record, stage: str, started: float | None, ended: float | None) -> bool:
    if started is None or ended is None:
        return False
    job = record.stage(stage).job
    return ended - started >= job.time_limit_min * 60 - job.warning_s - _LIMIT_SLACK_S
