"""The status of runs: one query to the scheduler for all of them, and the ranks' files."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hpclm.core.files import read_object, write_json
from hpclm.core.records import from_dict, read_record, to_dict
from hpclm.core.stage_result import is_complete, result_of
from hpclm.core.states import StageState
from hpclm.runs import attempt_history
from hpclm.runs.record import Run
from hpclm.runs.stage_state import current_state
from hpclm.schedulers.interface import Answers, RunQuery, StageQuery, scheduler_of
from hpclm.schedulers.jobs import JobInfo

_FOLLOW_S, _FOLLOW_MAX_S = 1.0, 5.0


@dataclass(frozen=True)
class StageStatus:
    """A stage. Numbers are None where they are not known; times are unix seconds.

    Attributes:
        attempts: how often its ranks were started in the newest submit.
        history: time and sentence for each attempt that failed or was interrupted.
    """

    name: str
    task: str
    state: StageState
    reason: str
    job_id: str | None = None
    rank: int | None = None
    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    scores: dict[str, Any] | None = None
    attempts: int = 0
    history: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Reported:
    """A stage's `progress.json`, as its reporting rank writes it."""

    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    started_at: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """A run: the worst of its stages, and each of them."""

    run: str
    state: StageState
    reason: str
    created_at: float
    site: str
    path: str
    stages: tuple[StageStatus, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def over(self) -> bool:
        return all(stage.state.is_over for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def status_of(runs: Iterable[Run]) -> list[RunStatus]:
    """The status of each run, in their order. Does not raise if a scheduler cannot be queried or a run's files cannot
    be read: the status says so instead."""
    runs = list(runs)
    answers = _ask(runs)
    return [_readable_status(run, answers[run.record.scheduler]) for run in runs]


def _readable_status(run: Run, answers: Answers) -> RunStatus:
    try:
        return _run_status(run, answers)
    except OSError as error:
        reason = f"cannot be read: {error.filename or run.paths.root}: {error.strerror or error}"
        stages = tuple(StageStatus(one.name, one.task, StageState.UNKNOWN, reason) for one in run.record.stages)
        record, root = run.record, str(run.paths.root)
        return RunStatus(record.run, StageState.UNKNOWN, reason, record.created_at, record.site.name, root, stages)


def scores_in(result: dict[str, Any] | None) -> dict[str, dict[str, Any]] | None:
    """The scores by task of a stage's result; None where it has none."""
    found = (result or {}).get("scores")
    if not isinstance(found, dict):
        return None
    return {task: one for task, one in found.items() if isinstance(one, dict)}


def follow(run: Run) -> Iterator[RunStatus]:
    """Yields the status repeatedly until the run has ended, including the final one.

    Files are read every second; the scheduler, which many users share, is queried less
    and less often, down to every 5 s.
    """
    pause = _FOLLOW_S
    shared = scheduler_of(run.record.site).is_shared
    while True:
        (now,) = status_of([run])
        yield now
        if now.over:
            return
        time.sleep(pause)
        pause = min(_FOLLOW_MAX_S, pause * 1.2) if shared else pause


def query_of(run: Run, stages: Iterable[str]) -> RunQuery:
    """The query for some stages of a run."""
    asked = []
    for stage in stages:
        submit = run.record.last_submit(stage)
        asked.append(StageQuery(stage, submit.number, submit.job_ids.get(stage), run.record.tag(stage)))
    return RunQuery(run.paths, run.record.user, tuple(asked))


def _ask(runs: list[Run]) -> dict[str, Answers]:
    """What each scheduler reports about every unfinished job, in one call."""
    answers = {}
    for name in {run.record.scheduler for run in runs}:
        mine = [run for run in runs if run.record.scheduler == name]
        queries = [query for run in mine if (query := query_of(run, _unsettled(run))).stages]
        answers[name] = scheduler_of(mine[0].record.site).query(queries)
    return answers


def _unsettled(run: Run) -> list[str]:
    """Stages whose end, or whose job, is not known yet."""
    found = []
    numbered = scheduler_of(run.record.site).has_job_ids
    for stage in (one.name for one in run.record.stages):
        lost = numbered and stage not in run.record.last_submit(stage).job_ids
        if lost or (not is_complete(run.paths.stage(stage)) and _kept(run, stage) is None):
            found.append(stage)
    return found


def _kept(run: Run, stage: str) -> JobInfo | None:
    """The scheduler's last answer about this very job, if that was an end."""
    job_id = run.record.last_submit(stage).job_ids.get(stage)
    raw = read_object(run.paths.stage(stage).scheduler)
    if raw is None or job_id is None or raw.get("job_id") != job_id:
        return None
    try:
        info = from_dict(JobInfo, raw, ignore_unknown=True)
    except ValueError:
        return None  # damaged, or an earlier version stored Slurm's own state: query again
    tried = attempt_history.attempts(run.paths.stage(stage), run.record.last_submit(stage).number)
    requeued = tried and tried[-1].at > (info.ended_at or 0) + 1
    return None if requeued or info.state is StageState.UNKNOWN else info


def _run_status(run: Run, answers: Answers) -> RunStatus:
    infos = _infos(run, answers)
    run = _adopt(run, infos)
    stages = tuple(_stage_status(run, stage.name, infos.get(stage.name), answers) for stage in run.record.stages)
    state, reason = _overall(stages)
    return RunStatus(
        run=run.record.run,
        state=state,
        reason=reason,
        created_at=run.record.created_at,
        site=run.record.site.name,
        path=str(run.paths.root),
        stages=stages,
        warnings=(answers.trouble,) if answers.trouble and any(not stage.state.is_over for stage in stages) else (),
    )


def _infos(run: Run, answers: Answers) -> dict[str, JobInfo]:
    """What is known about each stage's job: its stored final state, else the current
    answer, which is stored if final."""
    infos: dict[str, JobInfo] = {}
    keeps = scheduler_of(run.record.site).has_job_ids
    for stage in run.record.stages:
        info = _kept(run, stage.name) or answers.infos.get((run.paths.root, stage.name))
        if info is None:
            continue
        infos[stage.name] = info
        path = run.paths.stage(stage.name).scheduler
        if keeps and info.state.is_over and read_object(path) != to_dict(info):
            with contextlib.suppress(OSError):
                write_json(path, to_dict(info))
    return infos


def _adopt(run: Run, infos: dict[str, JobInfo]) -> Run:
    """Record the ids of jobs that were submitted but not recorded: the shell died in between."""
    if not scheduler_of(run.record.site).has_job_ids:
        return run
    for stage, info in infos.items():
        submit = run.record.last_submit(stage)
        if stage not in submit.job_ids:
            submit = dataclasses.replace(submit, job_ids={**submit.job_ids, stage: info.job_id})
            record = run.record.with_submit(submit)
            run = Run(run.paths, record)
            with contextlib.suppress(OSError):  # another user's run: shown, not saved
                run.save(record)
    return run


def _stage_status(run: Run, stage: str, info: JobInfo | None, answers: Answers) -> StageStatus:
    paths = run.paths.stage(stage)
    current = current_state(run.record, stage, paths, info, asked=answers.trouble is None)
    if current.state is StageState.UNKNOWN and answers.trouble:
        current = dataclasses.replace(current, reason=answers.trouble)
    progress = read_record(Reported, paths.progress) or Reported()
    result = result_of(paths) if current.state is StageState.COMPLETED else None
    running = current.state is StageState.RUNNING
    submit = run.record.last_submit(stage)
    return StageStatus(
        name=stage,
        task=run.record.stage(stage).task,
        state=current.state,
        reason=current.reason,
        job_id=submit.job_ids.get(stage),
        rank=current.rank,
        phase=progress.phase if running else None,
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=progress.epoch,
        loss=progress.loss,
        val_loss=progress.val_loss,
        tokens_per_s=progress.tokens_per_s,
        seconds_left=progress.seconds_left if running else None,
        started_at=current.started_at or progress.started_at,
        ended_at=current.ended_at,
        scores=scores_in(result),
        attempts=len(paths.all_attempts(submit.number)),
        history=tuple(attempt_history.sentences(paths, submit.number)),
    )


def _overall(stages: tuple[StageStatus, ...]) -> tuple[StageState, str]:
    """The state of the run: the first failure if any, else its progress."""
    states = {stage.state for stage in stages}
    if states == {StageState.COMPLETED}:
        return StageState.COMPLETED, ""
    bad = [stage for stage in stages if stage.state.is_bad]
    if bad:
        order = list(StageState)
        worst = min(bad, key=lambda stage: order.index(stage.state))
        return worst.state, f"{worst.name}: {worst.reason}"
    if StageState.RUNNING in states or {StageState.COMPLETED, StageState.PENDING} <= states:
        return StageState.RUNNING, ""
    if StageState.PENDING in states:
        waiting = next(stage for stage in stages if stage.state is StageState.PENDING)
        return StageState.PENDING, waiting.reason
    unknown = next(stage for stage in stages if stage.state is StageState.UNKNOWN)
    return StageState.UNKNOWN, f"{unknown.name}: {unknown.reason}"
