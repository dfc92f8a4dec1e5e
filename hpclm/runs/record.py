"""The record of a run (`run.json`): what was requested, and the scheduler's job ids.

It is written before the submit and again with the job ids, so that no job is ever without a record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpclm.core.clock import clock
from hpclm.core.errors import HpclmError, RunNotFoundError
from hpclm.core.files import read_json, write_json
from hpclm.core.layout import RunPaths
from hpclm.core.records import from_dict, to_dict
from hpclm.core.site import Site
from hpclm.runs.relocation import as_found
from hpclm.schedulers.jobs import StageJob, job_tag

VERSION = 2
# As `submit` names runs.
_TIME = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4,6}(?:\.\d+)?$")


@dataclass(frozen=True)
class StageRecord:
    """One stage: its job as of the first submit; later ones differ in their number and dependencies."""

    name: str
    task: str
    job: StageJob


@dataclass(frozen=True)
class SubmitRecord:
    """One submit: the first, or a resume.

    Attributes:
        stages: those submitted, in order; complete ones are left out of a resume.
        job_ids: by stage; a stage is missing until its id is known.
        error: why this submit failed before it was complete, None if it did not.
        cancelled_at: when `hpclm cancel` was requested.
        image_jobs: jobs that import images, for which the first stages wait.
    """

    number: int
    at: float
    stages: tuple[str, ...]
    job_ids: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    cancelled_at: float | None = None
    image_jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A run.

    Attributes:
        root: the run's folder when the record was written; its paths were in it.
        payload: folder of the code its ranks run, where it is not the run's own (members of a sweep share one).
    """

    run: str
    name: str
    created_at: float
    user: str
    host: str
    site: Site
    recipe: str
    overrides: tuple[str, ...]
    stages: tuple[StageRecord, ...]
    submits: tuple[SubmitRecord, ...]
    version: int = VERSION
    payload: str | None = None
    root: str | None = None

    @property
    def scheduler(self) -> str:
        return self.site.scheduler

    def stage(self, name: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.name == name)

    def last_submit(self, stage: str) -> SubmitRecord:
        """The newest submit that has this stage."""
        return next(submit for submit in reversed(self.submits) if stage in submit.stages)

    def tag(self, stage: str) -> str:
        """What the scheduler carries for this stage's newest job."""
        return job_tag(self.run, stage, self.last_submit(stage).number)

    def with_submit(self, submit: SubmitRecord) -> Record:
        """The record with this submit added, or replacing the one with its number."""
        others = tuple(one for one in self.submits if one.number != submit.number)
        return dataclasses.replace(self, submits=(*others, submit))


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    paths: RunPaths
    record: Record

    @property
    def payload(self) -> Path:
        """The code its ranks run."""
        return Path(self.record.payload) if self.record.payload else self.paths.payload

    def save(self, record: Record) -> Run:
        write_record(self.paths, record)
        return Run(self.paths, record)


def write_record(paths: RunPaths, record: Record) -> None:
    write_json(paths.record, to_dict(record))


def read_run(root: Path) -> Run:
    """The run in `root`, wherever that was when it was submitted.

    Raises RunNotFoundError when there is none, HpclmError when its record cannot be read.
    """
    paths = RunPaths(Path(os.path.abspath(root)))  # noqa: PTH100 - symbolic links are kept
    return Run(paths, as_found(stored_record(paths), paths.root))


def stored_record(paths: RunPaths) -> Record:
    """The record as it was written. Raises what `read_run` raises."""
    try:
        raw = read_json(paths.record)
    except (OSError, ValueError) as error:
        raise HpclmError(f"{paths.record}: cannot be read: {error}") from None
    if raw is None:
        raise RunNotFoundError(f"{paths.root}: not a run (it has no run.json)")
    try:
        if not isinstance(raw, dict) or raw.get("version") not in (1, VERSION):
            version = raw.get("version") if isinstance(raw, dict) else None
            raise HpclmError(f"{paths.record}: version {version}; this hpclm reads versions 1 and {VERSION}")
        record = from_dict(Record, upgraded(raw), ignore_unknown=True, where="run.json")
    except ValueError as error:
        raise HpclmError(f"{paths.record}: not a valid run record ({error})") from None
    submitted = {stage for submit in record.submits for stage in submit.stages}
    if not record.stages or not submitted.issuperset(stage.name for stage in record.stages):
        raise HpclmError(f"{paths.record}: not a valid run record (stages are missing, or were never submitted)")
    return record


def upgraded(raw: dict[str, Any]) -> dict[str, Any]:
    """A record of version 1 with today's names; its version is kept, since its ranks' code is kept."""
    if raw["version"] == VERSION or not isinstance(raw.get("stages"), list):
        return raw
    stages = []
    for stage in raw["stages"]:
        job = dict(stage["job"]) if isinstance(stage, dict) and isinstance(stage.get("job"), dict) else {}
        if "ledger" in job:
            job["bad_node_list"] = job.pop("ledger")
        stages.append({**stage, "job": job} if job else stage)
    return {**raw, "stages": stages}


def runs_in(folder: Path) -> Iterator[Path]:
    """Folders of runs, unsorted. Unfinished ones begin with a dot and are skipped."""
    for entry in entries_of(folder):
        if not entry.name.startswith(".") and has_file(RunPaths(entry).record):
            yield entry


def entries_of(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none. Raises HpclmError for one that may not be read."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise HpclmError(f"{folder}: {error.strerror}; choose another --runs-dir") from None


def has_file(path: Path) -> bool:
    """Whether there is something at a path. Yes for one in a folder that may not be entered: reading it tells."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def in_order(folder: Path) -> list[Path]:
    """Folders of runs, oldest first: by the time in their names, else by when something was last put there."""
    return sorted(runs_in(folder), key=lambda root: (_made_at(root), root.name))


def _made_at(root: Path) -> str:
    named = _TIME.search(root.name)
    if named is not None:
        return named[1]
    try:
        return clock("%Y%m%d-%H%M%S", root.stat().st_mtime)
    except OSError:
        return ""


def find_run(folder: Path, wanted: str | None) -> Run:
    """A run by id, by a unique prefix of it, by path, or the latest if nothing is given.

    Raises RunNotFoundError, listing the candidates.
    """
    if wanted is None:
        for root in reversed(in_order(folder)):
            with contextlib.suppress(HpclmError):
                return read_run(root)
        raise RunNotFoundError(
            f"no runs in {folder}; start one with `hpclm submit RECIPE`, or choose another --runs-dir"
        )
    if wanted and "/" not in wanted and RunPaths(folder / wanted).record.is_file():
        return read_run(folder / wanted)
    sweep = wanted.rpartition(".")[0]
    if sweep and "/" not in wanted and RunPaths(folder / sweep / wanted).record.is_file():
        return read_run(folder / sweep / wanted)  # a member of a sweep
    if "/" in wanted or RunPaths(Path(wanted)).record.is_file():
        return read_run(Path(wanted).expanduser().absolute())
    matches = sorted(root.name for root in runs_in(folder) if wanted and root.name.startswith(wanted))
    if len(matches) == 1:
        return read_run(folder / matches[0])
    if matches:
        raise RunNotFoundError(f"{wanted!r} is ambiguous: {', '.join(matches[:8])}; give a longer prefix")
    raise RunNotFoundError(f"no run {wanted!r} in {folder}; `hpclm status` lists the existing runs")
