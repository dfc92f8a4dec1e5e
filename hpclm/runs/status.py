"""How runs are doing: one question to the scheduler however many they are, and what the ranks have written."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hpclm.core.errors import SchedulerError
from hpclm.core.files import read_object, write_json
from hpclm.runs import attempt_history as story
from hpclm.runs.record import Run
from hpclm.runs.stage_state import judge
from hpclm.schedulers.jobs import BAD, OVER, STATES, JobInfo
from hpclm.schedulers.local import executor
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.words import state_word

_FOLLOW_S, _FOLLOW_MAX_S = 1.0, 5.0


@dataclass(frozen=True)
class StageStatus:
    """A stage. Numbers are None where they are not known; times are unix seconds.

    Attributes:
        attempts: how often its ranks were started since the newest submit.
        story: time and sentence for each attempt that was disturbed.
    """

    name: str
    task: str
    state: str
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
    story: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class RunStatus:
    """A run: the worst of its stages, and each of them."""

    run: str
    state: str
    reason: str
    created_at: float
    site: str
    path: str
    stages: tuple[StageStatus, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def over(self) -> bool:
        return all(stage.state in OVER for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def status_of(runs: Iterable[Run]) -> list[RunStatus]:
    """The status of each run, in their order. Never raises for a scheduler that cannot be asked: it is said instead."""
    runs = list(runs)
    answers, trouble = _ask_slurm(runs)
    return [_run_status(run, answers, trouble) for run in runs]


def follow(run: Run) -> Iterator[RunStatus]:
    """The status again and again until the run is over; that last one too.

    Files are looked at every second; a scheduler, which many share, is asked less and less often, down to every 5 s.
    """
    pause = _FOLLOW_S
    while True:
        (now,) = status_of([run])
        yield now
        if now.over:
            return
        time.sleep(pause)
        pause = pause if run.record.scheduler == "local" else min(_FOLLOW_MAX_S, pause * 1.2)


def _ask_slurm(runs: list[Run]) -> tuple[list[JobInfo], str | None]:
    """What Slurm says of every job still unsettled in one call, or why it could not be asked."""
    open_runs = [run for run in runs if run.record.scheduler == "slurm" and _unsettled(run)]
    if not open_runs:
        return [], None
    ids = [job_id for run in open_runs for job_id in _unsettled(run).values() if job_id]
    try:
        return client.jobs_of({run.record.user for run in open_runs}, ids), None
    except SchedulerError as error:
        return [], str(error)


def _unsettled(run: Run) -> dict[str, str | None]:
    """Stages whose end is not known yet, with their job ids."""
    found: dict[str, str | None] = {}
    for stage in run.record.stages:
        paths = run.paths.stage(stage.name)
        if not paths.result.exists() and _kept(run, stage.name) is None:
            found[stage.name] = run.record.last_submit(stage.name).job_ids.get(stage.name)
    return found


def _kept(run: Run, stage: str) -> JobInfo | None:
    """The scheduler's last word on this very job, if that was an end."""
    job_id = run.record.last_submit(stage).job_ids.get(stage)
    raw = read_object(run.paths.stage(stage).scheduler)
    if raw is None or job_id is None or raw.get("job_id") != job_id:
        return None
    told = story.chapters(run.paths.stage(stage), run.record.last_submit(stage).number)
    if told and told[-1].at > float(raw.get("ended_at") or 0) + 1:
        return None  # somebody had the job started again
    return JobInfo(**{item.name: raw.get(item.name) for item in dataclasses.fields(JobInfo)})  # type: ignore[arg-type]


def _run_status(run: Run, answers: list[JobInfo], trouble: str | None) -> RunStatus:
    run = _adopt(run, answers)
    infos = _local_infos(run) if run.record.scheduler == "local" else _slurm_infos(run, answers)
    stages = tuple(_stage_status(run, stage.name, infos.get(stage.name), trouble) for stage in run.record.stages)
    state, reason = _overall(stages)
    return RunStatus(
        run=run.record.run,
        state=state,
        reason=reason,
        created_at=run.record.created_at,
        site=run.record.site.name,
        path=str(run.paths.root),
        stages=stages,
        warnings=(trouble,) if trouble and any(stage.state not in OVER for stage in stages) else (),
    )


def _adopt(run: Run, answers: list[JobInfo]) -> Run:
    """Write down the ids of jobs that were submitted but whose ids were not: the shell died in between."""
    if run.record.scheduler != "slurm":
        return run
    tags = {info.tag: info.job_id for info in answers if info.tag}
    for stage in run.record.stages:
        submit = run.record.last_submit(stage.name)
        job_id = tags.get(run.record.tag(stage.name))
        if job_id is not None and stage.name not in submit.job_ids:
            submit = dataclasses.replace(submit, job_ids={**submit.job_ids, stage.name: job_id})
            record = run.record.with_submit(submit)
            run = Run(run.paths, record)
            with contextlib.suppress(OSError):  # another user's run: seen, not kept
                run.save(record)
    return run


def _slurm_infos(run: Run, answers: list[JobInfo]) -> dict[str, JobInfo]:
    """By stage. A job is ours by its tag; by its number alone only where the answer has no tag (accounting)."""
    infos: dict[str, JobInfo] = {}
    for stage in run.record.stages:
        kept = _kept(run, stage.name)
        if kept is not None:
            infos[stage.name] = kept
            continue
        job_id, tag = run.record.last_submit(stage.name).job_ids.get(stage.name), run.record.tag(stage.name)
        for info in answers:
            if info.job_id == job_id and info.tag in (tag, ""):
                infos[stage.name] = info
                if state_word(info.state) in OVER:
                    with contextlib.suppress(OSError):
                        write_json(run.paths.stage(stage.name).scheduler, dataclasses.asdict(info))
    return infos


def _local_infos(run: Run) -> dict[str, JobInfo]:
    looked: dict[int, dict[str, JobInfo]] = {}
    infos = {}
    for stage in run.record.stages:
        number = run.record.last_submit(stage.name).number
        if number not in looked:
            looked[number] = executor.look(run.paths.local(number))
        if stage.name in looked[number]:
            infos[stage.name] = looked[number][stage.name]
    return infos


def _stage_status(run: Run, stage: str, info: JobInfo | None, trouble: str | None) -> StageStatus:
    paths = run.paths.stage(stage)
    verdict = judge(run.record, stage, paths, info, asked=trouble is None)
    if verdict.state == "unknown" and trouble:
        verdict = dataclasses.replace(verdict, reason=trouble)
    progress = read_object(paths.progress) or {}
    result = read_object(paths.result) if verdict.state == "completed" else None
    running = verdict.state == "running"
    submit = run.record.last_submit(stage)
    return StageStatus(
        name=stage,
        task=run.record.stage(stage).task,
        state=verdict.state,
        reason=verdict.reason,
        job_id=submit.job_ids.get(stage),
        rank=verdict.rank,
        phase=progress.get("phase") if running else None,
        step=progress.get("step"),
        total_steps=progress.get("total_steps"),
        epoch=progress.get("epoch"),
        loss=progress.get("loss"),
        val_loss=progress.get("val_loss"),
        tokens_per_s=progress.get("tokens_per_s"),
        seconds_left=progress.get("seconds_left") if running else None,
        started_at=verdict.started_at or progress.get("started_at"),
        ended_at=verdict.ended_at,
        scores=(result or {}).get("scores"),
        attempts=len(paths.all_attempts(submit.number)),
        story=tuple(story.sentences(paths, submit.number)),
    )


def _overall(stages: tuple[StageStatus, ...]) -> tuple[str, str]:
    """The run in one word: what went wrong first if anything did, else how far it is."""
    states = {stage.state for stage in stages}
    if states == {"completed"}:
        return "completed", ""
    bad = [stage for stage in stages if stage.state in BAD]
    if bad:
        worst = min(bad, key=lambda stage: STATES.index(stage.state))
        return worst.state, f"{worst.name}: {worst.reason}"
    if "running" in states or ("completed" in states and "pending" in states):
        return "running", ""
    if "pending" in states:
        waiting = next(stage for stage in stages if stage.state == "pending")
        return "pending", waiting.reason
    unknown = next(stage for stage in stages if stage.state == "unknown")
    return "unknown", f"{unknown.name}: {unknown.reason}"
