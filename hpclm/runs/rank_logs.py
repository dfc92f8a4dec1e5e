"""The logs of the ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpclm.core.errors import HpclmError, RunNotFoundError
from hpclm.core.files import open_text
from hpclm.runs.record import Run
from hpclm.runs.status import RunStatus, StageStatus, status_of

_BLOCK = 1 << 16
_PAUSE_S = 0.3
_ASK_EVERY_S = 2.0


def choose_stage(run: Run, status: RunStatus, wanted: str | None) -> StageStatus:
    """The stage whose log is shown: the named one, else one that failed, else one that
    is running, else the last that started."""
    by_name = {stage.name: stage for stage in status.stages}
    if wanted is not None:
        if wanted not in by_name:
            raise RunNotFoundError(f"run {run.record.run} has no stage {wanted!r}; it has {', '.join(by_name)}")
        return by_name[wanted]
    for state in ("failed", "out-of-memory", "node-fail", "timeout", "running"):
        for stage in status.stages:
            if stage.state == state:
                return stage
    begun = [stage for stage in status.stages if run.paths.stage(stage.name).latest_attempt() is not None]
    return begun[-1] if begun else status.stages[0]


def log_path(run: Run, stage: StageStatus, rank: int | None) -> Path:
    """The log of a rank of the stage's newest attempt; by default of the rank that failed first, else rank 0."""
    world_size = run.record.stage(stage.name).job.world_size
    if rank is not None and not 0 <= rank < world_size:
        raise HpclmError(f"--rank {rank}: stage {stage.name} has ranks 0 to {world_size - 1}")
    chosen = rank if rank is not None else stage.rank or 0
    paths, submit = run.paths.stage(stage.name), run.record.last_submit(stage.name)
    attempt = paths.latest_attempt(submit.number) or paths.attempt(submit.number)
    own = attempt.log(chosen)
    batch = paths.batch_log(submit.job_ids.get(stage.name) or "none")
    return own if own.exists() or rank is not None or not batch.exists() else batch


def read(path: Path) -> Iterator[str]:
    """The current log. Raises HpclmError if there is none."""
    if not path.exists():
        raise HpclmError(f"{path}: no log yet; the rank has not started (see `hpclm status`)")
    with open_text(path, errors="replace") as stream:
        while block := stream.read(_BLOCK):
            yield block


def follow(path: Path, is_over: Callable[[], bool]) -> Iterator[str]:
    """The log as it grows, until `is_over` and everything was read; waits for a log that does not exist yet."""
    asked, over, stream = 0.0, False, None
    try:
        while True:
            if stream is None and path.exists():
                stream = open_text(path, errors="replace")
            block = stream.read(_BLOCK) if stream else ""
            if block:
                yield block
                continue
            if over:
                break
            if time.monotonic() - asked >= _ASK_EVERY_S:
                asked, over = time.monotonic(), is_over()
            time.sleep(0 if over else _PAUSE_S)
    finally:
        if stream is not None:
            stream.close()
    if stream is None:
        yield from read(path)  # which raises the error


def whole_lines(blocks: Iterator[str]) -> Iterator[str]:
    """The same text line by line, so that what is searched in a line is found; a progress bar's returns end one too."""
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        yield from (f"{line}\n" for line in lines)
        if len(rest) > _BLOCK:
            yield rest
            rest = ""
    yield rest


def stage_is_over(run: Run, stage: str) -> bool:
    """Whether a stage has ended, in any state."""
    (status,) = status_of([run])
    return next(one.state for one in status.stages if one.name == stage).is_over
