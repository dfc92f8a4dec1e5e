"""A sweep: one recipe many times over, each time with other values; on Slurm one job array a stage.

`<runs_dir>/<sweep>/sweep.json` says what it is, `<runs_dir>/<sweep>/<sweep>.<index:03d>/` is each member's run, a run
like any other. Everything is planned and checked before anything is written, and written before a scheduler is asked.
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
from hpclm.core.site import load_site
from hpclm.runs.record import Run, read_run
from hpclm.runs.runs_folder import runs_folder
from hpclm.runs.submit import Prepared, Request, import_images, prepare, run_id, write
from hpclm.schedulers.jobs import ArrayJob, StageJob, member_run
from hpclm.schedulers.local import executor
from hpclm.schedulers.slurm import client, job_script

_FILE = "sweep.json"
# Keys that users write short.
_SHORT = {"seed": "trainer.seed", "lr": "optim.lr"}
_MOST = 10_000


@dataclass(frozen=True)
class Axis:
    """One `--sweep KEY=V1,V2`: the key, and its values as they are written for `--set`."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One run of a sweep, and what is set in it."""

    run: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk.

    Attributes:
        metric: what its members are compared by: `val_loss`, or a score's name.
        max_running: how many members run at once, None: as many as fit.
    """

    root: Path
    name: str
    created_at: float
    axes: tuple[Axis, ...]
    members: tuple[Member, ...]
    metric: str
    max_running: int | None = None

    def runs(self) -> list[Run]:
        """The members' runs, in order; those that were never written are left out."""
        found = []
        for member in self.members:
            folder = self.root / member.run
            if (folder / "run.json").is_file():
                found.append(read_run(folder))
        return found


def parse_axis(text: str) -> Axis:
    """Read `KEY=V1,V2`; commas in quotes or brackets do not part. Raises RecipeError."""
    key, equals, rest = text.partition("=")
    key = key.strip()
    values = _split(rest)
    if not equals or not key or not all(value.strip() for value in values):
        raise RecipeError(f"--sweep {text[:80]!r}: write KEY=VALUE,VALUE, as in --sweep optim.lr=1e-4,3e-4")
    if len(set(values)) < len(values):
        raise RecipeError(f"--sweep {key}: a value is there twice")
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
    """Plan and check every member; nothing is written. Raises what `prepare` raises, once for all members alike."""
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise RecipeError(f"--sweep: {next(key for key in keys if keys.count(key) > 1)} is swept twice")
    grid = list(itertools.product(*(axis.values for axis in axes)))
    if len(grid) > _MOST:
        raise RecipeError(f"--sweep: {len(grid)} members; {_MOST} is the most")
    site = load_site(request.site)
    folder = runs_folder(request.runs_dir, site)
    made: list[Prepared] = []
    members: list[Member] = []
    name = ""
    for index, values in enumerate(grid):
        settings = dict(zip(keys, values, strict=True))
        overrides = (*request.overrides, *(f"{key}={value}" for key, value in settings.items()))
        one = dataclasses.replace(request, overrides=overrides)
        if not name:
            name = run_id(request.name, prepare(one).plan.name)
        run = member_run(name, index)
        made.append(prepare(one, folder / name / run))
        members.append(Member(run, settings))
    _refuse_unlike(made, members)
    chosen = metric or _metric(made[0])
    return Sweep(folder / name, name, time.time(), tuple(axes), tuple(members), chosen, max_running), made


def _metric(prepared: Prepared) -> str:
    return "exact_match" if prepared.plan.stages[-1].task == "evaluate" else "val_loss"


def _refuse_unlike(made: list[Prepared], members: list[Member]) -> None:
    """An array asks for the same for every member."""
    first = [_shape(job) for job in made[0].jobs]
    for one, member in zip(made, members, strict=True):
        shape = [_shape(job) for job in one.jobs]
        for ours, theirs in zip(first, shape, strict=True):
            unlike = [key for key in ours if ours[key] != theirs[key]]
            if unlike:
                what = ", ".join(f"{key} {theirs[key]} (the first member has {ours[key]})" for key in unlike)
                raise SiteError(
                    f"--sweep: stage {ours['stage']} of {member.settings} asks for {what}; one job array asks for the "
                    "same for all: submit these as runs of their own"
                )


def _shape(job: StageJob) -> dict[str, Any]:
    keys = ("stage", "device", "nodes", "tasks_per_node", "cpus_per_task", "memory_gib", "time_limit_min", "depends_on")
    return {key: getattr(job, key) for key in keys}


def submit_sweep(sweep: Sweep, made: list[Prepared], say: Callable[[str], None] = lambda line: None) -> None:
    """Write every member, then hand them over. Raises SiteError or SchedulerError; then nothing is left behind,
    unless a scheduler has taken some of it already."""
    problems = list(dict.fromkeys(problem for one in made for problem in one.problems))
    if problems:
        raise SiteError("\n".join(problems))
    image_jobs = import_images(made[0], say)
    sweep.root.mkdir(parents=True)
    handed = False
    try:
        write_json(sweep.root / _FILE, {**dataclasses.asdict(sweep), "root": None, "version": 1})
        runs = [write(one, image_jobs) for one in made]
        handed = True
        if runs[0].record.scheduler == "local":
            _start_local(sweep, runs, made)
        else:
            _start_slurm(sweep, runs, made)
    except BaseException:
        if not handed:
            shutil.rmtree(sweep.root, ignore_errors=True)
        raise


def _start_local(sweep: Sweep, runs: list[Run], made: list[Prepared]) -> None:
    """One process that outlives the shell starts the members' supervisors, a few at a time."""
    queue = []
    for run, one in zip(runs, made, strict=True):
        paths = run.paths.local(1)
        executor.write_jobs(paths, list(one.jobs), run.record.site)
        queue.append({"local": str(paths.root), "payload": str(run.paths.payload)})
    executor.submit_queue(sweep.root, queue, sweep.max_running or 1)


def _start_slurm(sweep: Sweep, runs: list[Run], made: list[Prepared]) -> None:
    for run, one in zip(runs, made, strict=True):
        for job in one.jobs:
            (run.paths.stage(job.stage).script).write_text(job_script.render(job, one.site))
    size = client.max_array_size() - 1
    for start in range(0, len(runs), size):
        _submit_arrays(sweep, start, runs[start : start + size], made[start])


def _submit_arrays(sweep: Sweep, start: int, runs: list[Run], first: Prepared) -> None:
    """One array a stage for these members; each id is written down as soon as it is known."""
    folder = sweep.root / f"array-{start}"
    folder.mkdir()
    for index, run in enumerate(runs):
        (folder / str(index)).symlink_to(Path("..") / run.paths.name)
    array = ArrayJob(sweep.name, str(folder), start, len(runs), sweep.max_running)
    taken: dict[str, str] = {}
    for job in first.jobs:
        after = [taken[parent] for parent in job.depends_on]
        taken[job.stage] = job_script.submit_array(job, first.site, array, after)
        for index, run in enumerate(runs):
            submit = run.record.submits[0]
            ids = {**submit.job_ids, job.stage: f"{taken[job.stage]}_{index}"}
            runs[index] = run.save(run.record.with_submit(dataclasses.replace(submit, job_ids=ids)))


def find_sweep(folder: Path, wanted: str | None) -> Sweep | None:
    """The sweep called `wanted` (or whose name begins so, if one alone does), None where there is none."""
    if not wanted:
        return None
    if (folder / wanted / _FILE).is_file():
        return read_sweep(folder / wanted)
    if Path(wanted, _FILE).is_file():
        return read_sweep(Path(wanted).absolute())
    if "/" in wanted:
        return None
    matches = [path for path in folder.glob(f"*/{_FILE}") if path.parent.name.startswith(wanted)]
    return read_sweep(matches[0].parent) if len(matches) == 1 else None


def all_sweeps(folder: Path) -> list[Sweep]:
    """Every sweep, oldest first."""
    found = []
    for path in folder.glob(f"*/{_FILE}"):
        try:
            found.append(read_sweep(path.parent))
        except HpclmError:
            continue
    return sorted(found, key=lambda sweep: sweep.created_at)


def read_sweep(root: Path) -> Sweep:
    """Raises HpclmError for a file that is no sweep's."""
    try:
        raw = read_json(root / _FILE)
        axes = tuple(Axis(one["key"], tuple(one["values"])) for one in raw["axes"])
        members = tuple(Member(one["run"], dict(one["settings"])) for one in raw["members"])
        limit = raw.get("max_running")
        return Sweep(root, raw["name"], float(raw["created_at"]), axes, members, raw["metric"], limit)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HpclmError(f"{root / _FILE}: not a sweep's record ({error})") from None
