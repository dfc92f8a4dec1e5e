"""A sweep: one recipe run many times, each time with other values; on Slurm one job array per stage.

`<runs_dir>/<sweep>/sweep.json` is its record, `<runs_dir>/<sweep>/<sweep>.<index:03d>/` is each member's run, a run
like any other but for its code and recipe, which all members share, and on Slurm its stages' folders, which its jobs
make. Everything is planned and checked before anything is written,
and written before anything is submitted.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import HpclmError, RecipeError, SiteError
from hpclm.core.files import read_json, write_json
from hpclm.core.payload import stage_payload
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import sealed_line
from hpclm.core.sweep_layout import RunsFolder, SweepPaths
from hpclm.core.sweep_recipes import write_recipes
from hpclm.planning.task import task_named
from hpclm.runs.record import Run, entries_of, has_file, read_run
from hpclm.runs.submit import (
    Prepared,
    Preparer,
    Request,
    import_images,
    make_folders,
    refuse_errors,
    remove_made,
    run_id,
    share,
    submission_of,
    write,
)
from hpclm.schedulers.interface import SweepSubmission, scheduler_of
from hpclm.schedulers.jobs import StageJob, member_run

# Short forms of keys.
_SHORT = {"seed": "trainer.seed", "lr": "optim.lr"}
_MOST = 10_000


@dataclass(frozen=True)
class Axis:
    """One `--sweep KEY=V1,V2`: the key, and its values as they are written for `--set`."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One run of a sweep, and its settings."""

    run: str
    settings: dict[str, str]


@dataclass(frozen=True)
class SweepRecord:
    """`sweep.json`.

    Attributes:
        metric: the metric by which its members are compared: `val_loss`, or a metric's name.
        max_running: how many members run at the same time, None: as many as fit.
    """

    name: str
    created_at: float
    axes: tuple[Axis, ...]
    members: tuple[Member, ...]
    metric: str
    max_running: int | None = None
    version: int = 1


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk."""

    paths: SweepPaths
    record: SweepRecord

    @property
    def name(self) -> str:
        return self.record.name

    def runs(self) -> list[Run]:
        """The members' runs, in order; those that were never written are left out."""
        folders = (self.paths.run(member.run) for member in self.record.members)
        return [read_run(folder.root) for folder in folders if folder.record.is_file()]


def parse_axis(text: str) -> Axis:
    """Read `KEY=V1,V2`; commas in quotes or brackets do not separate. Raises RecipeError."""
    key, equals, rest = text.partition("=")
    key = key.strip()
    values = _split(rest)
    if not equals or not key or not all(value.strip() for value in values):
        raise RecipeError(f"--sweep {text[:80]!r}: write KEY=VALUE,VALUE, as in --sweep optim.lr=1e-4,3e-4")
    if len(set(values)) < len(values):
        raise RecipeError(f"--sweep {key}: a value is given twice")
    return Axis(_SHORT.get(key, key), tuple(value.strip() for value in values))


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def prepare_sweep(
    request: Request, axes: list[Axis], *, max_running: int | None = None, metric: str | None = None
) -> tuple[Sweep, list[Prepared]]:
    """Plan and check every member; nothing is written. Raises what `prepare` raises, for
    the first member with an error."""
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise RecipeError(f"--sweep: {next(key for key in keys if keys.count(key) > 1)} is swept twice")
    grid = list(itertools.product(*(axis.values for axis in axes)))
    if len(grid) > _MOST:
        raise RecipeError(f"--sweep: {len(grid)} members; the maximum is {_MOST}")
    preparer = Preparer(request.site, request.runs_dir)
    made: list[Prepared] = []
    members: list[Member] = []
    paths: SweepPaths | None = None
    for index, values in enumerate(grid):
        settings = dict(zip(keys, values, strict=True))
        overrides = (*request.overrides, *(f"{key}={value}" for key, value in settings.items()))
        one = dataclasses.replace(request, overrides=overrides)
        if paths is None:
            name = run_id(request.name, preparer.prepare(one).plan.name)
            paths = preparer.folder.sweep(name)
        run = member_run(paths.name, index)
        prepared = preparer.prepare(one, paths.run(run), paths.payload)
        refuse_errors(prepared.plan)
        made.append(prepared)
        members.append(Member(run, settings))
    assert paths is not None
    _refuse_unlike(made, members)
    chosen = metric or task_named(made[0].plan.stages[-1].task).compared_by
    record = SweepRecord(paths.name, time.time(), tuple(axes), tuple(members), chosen, max_running)
    return Sweep(paths, record), made


def _refuse_unlike(made: list[Prepared], members: list[Member]) -> None:
    """A job array requests the same for every member."""
    first = [_shape(job) for job in made[0].jobs]
    for one, member in zip(made, members, strict=True):
        shape = [_shape(job) for job in one.jobs]
        for ours, theirs in zip(first, shape, strict=True):
            unlike = [key for key in ours if ours[key] != theirs[key]]
            if unlike:
                what = ", ".join(f"{key} {theirs[key]} (the first member has {ours[key]})" for key in unlike)
                raise SiteError(
                    f"--sweep: stage {ours['stage']} of {member.settings} requests {what}; members of one job array "
                    "must request the same: submit these as separate runs"
                )


def _shape(job: StageJob) -> dict[str, Any]:
    keys = ("stage", "device", "nodes", "tasks_per_node", "cpus_per_task", "memory_gib", "time_limit_min", "depends_on")
    return {key: getattr(job, key) for key in keys}


def submit_sweep(sweep: Sweep, made: list[Prepared], log: Callable[[str], None] = lambda line: None) -> None:
    """Write every member, then submit them. Raises SiteError or SchedulerError; then nothing is left behind,
    unless a scheduler has already accepted some of it."""
    problems = list(dict.fromkeys(problem for one in made for problem in one.problems))
    if problems:
        raise SiteError("\n".join(problems))
    image_jobs = import_images(made[0], log)
    folder = RunsFolder(sweep.paths.root.parent)
    made_folders = make_folders(folder.root)
    sweep.paths.root.mkdir()
    handed = False
    try:
        write_json(sweep.paths.record, to_dict(sweep.record))
        share(made[0], sweep.paths.root)
        stage_payload(sweep.paths.payload, shared=folder.payloads)
        write_recipes(sweep.paths, ((one.run, one.loaded.resolved()) for one in made))
        with_stages = not scheduler_of(made[0].site).makes_member_folders
        runs = [write(one, image_jobs, stages=with_stages) for one in made]
        handed = True
        _start(sweep, runs, made, image_jobs)
    except BaseException:
        if not handed:
            shutil.rmtree(sweep.paths.root, ignore_errors=True)
            remove_made(made_folders, folder)
        raise


def _start(sweep: Sweep, runs: list[Run], made: list[Prepared], image_jobs: tuple[str, ...]) -> None:
    def note(index: int, job_ids: dict[str, str]) -> None:
        run = runs[index]
        submit = dataclasses.replace(run.record.submits[0], job_ids=job_ids)
        runs[index] = run.save(run.record.with_submit(submit))

    members = [submission_of(run, one.jobs, {}, image_jobs) for run, one in zip(runs, made, strict=True)]

    def spec(index: int, stage: str) -> str:
        specs = zip(made[index].jobs, made[index].specs, strict=True)
        return next(sealed_line(to_dict(one)) for job, one in specs if job.stage == stage)

    submission = SweepSubmission(sweep.paths, members, sweep.record.max_running, spec, note)
    scheduler_of(made[0].site).start_sweep(submission)


def find_sweep(folder: Path, wanted: str | None) -> Sweep | None:
    """The sweep called `wanted` (or the only one whose name begins so), None if there is none."""
    if not wanted:
        return None
    for paths in (RunsFolder(folder).sweep(wanted), SweepPaths(Path(wanted).absolute())):
        if paths.record.is_file():
            return read_sweep(paths)
    if "/" in wanted:
        return None
    matches = [paths for paths in _sweeps_in(folder) if paths.name.startswith(wanted)]
    return read_sweep(matches[0]) if len(matches) == 1 else None


def _sweeps_in(folder: Path) -> list[SweepPaths]:
    return [paths for entry in entries_of(folder) if has_file((paths := SweepPaths(entry)).record)]


def all_sweeps(folder: Path) -> list[Sweep]:
    """Every sweep, oldest first."""
    found = []
    for paths in _sweeps_in(folder):
        try:
            found.append(read_sweep(paths))
        except HpclmError:
            continue
    return sorted(found, key=lambda sweep: sweep.record.created_at)


def read_sweep(paths: SweepPaths) -> Sweep:
    """Raises HpclmError for a file that is not a sweep record."""
    try:
        return Sweep(paths, from_dict(SweepRecord, read_json(paths.record), ignore_unknown=True, where="sweep.json"))
    except (OSError, ValueError) as error:
        raise HpclmError(f"{paths.record}: not a valid sweep record ({error})") from None
