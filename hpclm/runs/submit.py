"""From a recipe to a run that a scheduler has taken.

`prepare` decides everything and changes nothing; `submit` writes the run directory and asks the scheduler. A submit
that is refused leaves nothing behind; one that breaks off after the scheduler took something leaves a record of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpclm.containers.image_cache import Import, pull
from hpclm.core.errors import PlanError, SchedulerError, SiteError
from hpclm.core.files import write_json, write_text
from hpclm.core.layout import RunPaths
from hpclm.core.payload import stage_payload
from hpclm.core.site import Site, load_site
from hpclm.recovery import bad_nodes
from hpclm.runs.environment import capture, user_name
from hpclm.runs.job_building import import_of, stage_jobs
from hpclm.runs.mounts import mount_notes
from hpclm.runs.record import Record, Run, StageRecord, SubmitRecord, write_record
from hpclm.runs.runs_folder import runs_folder
from hpclm.schedulers.discovery import Offer, discover, misfits
from hpclm.schedulers.jobs import StageJob
from hpclm.schedulers.local import executor
from hpclm.schedulers.slurm import client, job_script

if TYPE_CHECKING:
    from hpclm.core.spec import ProgramStageSpec, StageSpec
    from hpclm.planning import Plan
    from hpclm.recipe import LoadedRecipe


_BUILDING = ".building"
_LEFTOVER_S = 3600.0


@dataclass(frozen=True)
class Request:
    """What the user asks for."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    nodes: int | None = None
    devices_per_node: int | None = None
    site: str = "local"
    runs_dir: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything about a run before it exists.

    Attributes:
        problems: why it could not start here (the scheduler is away, it does not fit); a dry run shows them, a submit
            refuses for them.
        imports: images that have to be there as files before a job can start.
    """

    request: Request
    loaded: LoadedRecipe
    plan: Plan
    site: Site
    paths: RunPaths
    specs: tuple[StageSpec | ProgramStageSpec, ...]
    jobs: tuple[StageJob, ...]
    problems: tuple[str, ...]
    imports: tuple[Import, ...] = ()

    @property
    def run(self) -> str:
        return self.paths.name

    @property
    def notes(self) -> list[str]:
        """What a person should know although it is no fault."""
        alone = self.site.scheduler == "local" and any(job.nodes > 1 for job in self.jobs)
        notes = ["site local has one node, this machine: the ranks of all nodes run on it"] if alone else []
        notes += [
            f"stage {job.stage}: {job.total_time_min} min over jobs of {job.time_limit_min} min, one after the other"
            for job in self.jobs
            if self.site.scheduler == "slurm" and job.time_limit_min < job.total_time_min
        ]
        if self.jobs and self.jobs[0].exclude:
            nodes = ", ".join(self.jobs[0].exclude)
            notes.append(f"left out: {nodes}, found at fault in the last day; see `hpclm nodes`")
        for stage in self.plan.stages:
            notes += mount_notes(stage, self.site, self.paths.root, Path.home())
        return notes


def prepare(request: Request, root: Path | None = None) -> Prepared:
    """Read, plan and check. Raises RecipeError, SiteError, or PlanError with every finding at once.

    `root`: the run's folder where it is no new one beside the others (a member of a sweep).
    """
    from hpclm.planning import make_plan, stage_specs
    from hpclm.recipe import load

    site = load_site(request.site)
    folder = runs_folder(request.runs_dir, site)
    loaded = load(
        request.recipe,
        list(request.overrides),
        nodes=request.nodes,
        devices_per_node=request.devices_per_node,
    )
    plan = make_plan(loaded)
    refuse_errors(plan)
    offer = discover(
        site,
        gpu=any(stage.resources.device == "gpu" for stage in plan.stages),
        container=any(stage.container is not None for stage in plan.stages),
    )
    paths = RunPaths(root or folder / run_id(request.name, plan.name))
    jobs, problems = stage_jobs(plan.stages, offer, paths, plan.name, folder, _excluded(offer, folder, plan))
    specs = tuple(stage_specs(plan, paths.name, paths.root))
    problems = [*misfits(offer, jobs), *problems]
    imports = tuple(one for stage in plan.stages if (one := import_of(stage, offer.site, folder)) is not None)
    return Prepared(request, loaded, plan, offer.site, paths, specs, tuple(jobs), tuple(problems), imports)


def _excluded(offer: Offer, folder: Path, plan: Plan) -> tuple[str, ...]:
    """Nodes the ledger has against this site, unless too few would be left without them."""
    if offer.partition is None:
        return ()
    bad = bad_nodes.suspects(folder, offer.site.name)
    most = max(stage.resources.nodes for stage in plan.stages)
    return tuple(bad) if offer.partition.nodes - len(bad) >= most else ()


def refuse_errors(plan: Plan) -> None:
    """Raises PlanError with every finding that is an error, one a line."""
    if plan.errors:
        raise PlanError("\n".join(str(finding) for finding in plan.errors))


def scripts(prepared: Prepared) -> list[tuple[StageJob, list[str], str]]:
    """Each stage's job, what its script is handed to, and the script: the very text that a submit uses."""
    if prepared.site.scheduler == "local":
        return [(job, [], executor.render(job, prepared.site)) for job in prepared.jobs]
    words = {job.stage: f"<job id of {job.stage}>" for job in prepared.jobs}
    return [
        (job, ["sbatch", *job_script.submission_argv(job, words), "job.sh"], job_script.render(job, prepared.site))
        for job in prepared.jobs
    ]


def submit(prepared: Prepared, say: Callable[[str], None] = lambda line: None) -> Run:
    """Make the run and start it, once its images are there or on their way. `say` takes lines for the user.

    Raises SiteError or SchedulerError; then nothing is left behind, unless the message says what is.
    """
    if prepared.problems:
        raise SiteError("\n".join(prepared.problems))
    for _ in scripts(prepared):
        pass  # what cannot be quoted is refused before anything is written
    jobs = import_images(prepared, say)
    made_folder = _make(prepared.paths.root.parent)
    _sweep_up(prepared.paths.root.parent)
    try:
        run = write(prepared, jobs)
        return start(run, list(prepared.jobs))
    except BaseException:
        if not _was_submitted(prepared.paths):
            shutil.rmtree(prepared.paths.root, ignore_errors=True)
            for folder in made_folder:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise


def import_images(prepared: Prepared, say: Callable[[str], None]) -> tuple[str, ...]:
    """Have every image that is missing; returns the jobs that do it where the site wants jobs for that."""
    missing = [one for one in dict.fromkeys(prepared.imports) if not one.target.exists()]
    if prepared.site.container.pull == "job" and prepared.site.scheduler == "slurm":
        return tuple(job_script.submit_import(one, prepared.site) for one in missing)
    for one in missing:
        pull(one, say)
    return ()


def start(run: Run, jobs: list[StageJob], parents: dict[str, str] | None = None) -> Run:
    """Hand a submit's jobs to the scheduler. The record is on disk before, with this submit in it without job ids.

    `parents`: job ids, by stage, of an earlier submit's jobs that these wait for.
    """
    if run.record.scheduler == "local":
        executor.submit(run.paths.local(jobs[0].submit), jobs, run.record.site, run.paths.payload)
        return run
    return _start_slurm(run, jobs, parents or {})


def _start_slurm(run: Run, jobs: list[StageJob], parents: dict[str, str]) -> Run:
    taken: dict[str, str] = {}
    for job in jobs:
        known = {**parents, **taken}
        try:
            if job.depends_on:
                job_script.verify([known[parent] for parent in job.depends_on], run.record.user)
            taken[job.stage] = job_script.submit(job, run.record.site, known, run.record.submits[-1].image_jobs)
        except (SchedulerError, KeyboardInterrupt) as error:
            why = str(error) or "interrupted"
            lost = _found_by_tag(run, job, taken, why)
            if lost is not None:
                taken[job.stage] = lost
            if lost is None or isinstance(error, KeyboardInterrupt):
                _take_back(run, job, taken, why)
        run = _note(run, job.submit, taken)
    return run


def _note(run: Run, number: int, taken: dict[str, str], error: str | None = None) -> Run:
    """Write down what the scheduler has taken so far, and why it went no further if it did not."""
    submit = next(submit for submit in run.record.submits if submit.number == number)
    return run.save(run.record.with_submit(dataclasses.replace(submit, job_ids=dict(taken), error=error)))


def _found_by_tag(run: Run, job: StageJob, taken: dict[str, str], why: str) -> str | None:
    """The id of a job that the scheduler took although sbatch failed (its answer was lost), if there is one.

    Raises SchedulerError when that cannot be found out; the record then stays, for status to look again.
    """
    try:
        return next((info.job_id for info in client.jobs_of([run.record.user]) if info.tag == job.tag), None)
    except SchedulerError as error:
        _note(run, job.submit, taken, f"stage {job.stage}: {why}")
        raise SchedulerError(
            f"stage {job.stage}: {why}\nand whether the job was taken all the same cannot be found out ({error}); "
            f"`hpclm status {run.record.run}` looks again"
        ) from None


def _take_back(run: Run, job: StageJob, taken: dict[str, str], why: str) -> None:
    """Cancel the stages already taken, write down why, and raise."""
    if not taken:
        raise SchedulerError(why)
    error = f"stage {job.stage}: {why}"
    _note(run, job.submit, taken, error)
    client.scancel(taken.values())
    raise SchedulerError(f"{error}\nwhat was submitted ({', '.join(taken)}) was cancelled; see {run.paths.root}")


def _was_submitted(paths: RunPaths) -> bool:
    """Whether a scheduler has, or may have, anything of this run."""
    from hpclm.runs.record import read_run

    try:
        record = read_run(paths.root).record
    except Exception:
        return False
    return any(submit.job_ids or submit.error for submit in record.submits) or paths.local(1).state.exists()


def write(prepared: Prepared, image_jobs: tuple[str, ...] = ()) -> Run:
    """The run directory: built under a name that nobody looks at, then renamed, so it is there whole or not at all."""
    final = prepared.paths
    building = RunPaths(final.root.with_name(f".{final.name}{_BUILDING}"))
    try:
        building.root.mkdir()
        record = _record(prepared, image_jobs)
        write_text(building.recipe, prepared.loaded.text)
        write_json(building.resolved, prepared.loaded.resolved())
        write_json(building.plan, prepared.plan.to_dict())
        write_json(building.environment, capture(prepared.request.recipe.absolute()))
        for job, spec in zip(prepared.jobs, prepared.specs, strict=True):
            stage = building.stage(job.stage)
            write_json(stage.spec, _spec_dict(spec))
            stage.slurm.mkdir()  # a job whose log folder is missing fails without a word
        stage_payload(building.payload)
        write_record(building, record)
        building.root.rename(final.root)
    except BaseException:
        shutil.rmtree(building.root, ignore_errors=True)
        raise
    return Run(final, record)


def _sweep_up(folder: Path) -> None:
    """Remove what submits that were killed while they wrote have left, an hour after."""
    for leftover in folder.glob(f".*{_BUILDING}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                shutil.rmtree(leftover)


def _spec_dict(spec: StageSpec | ProgramStageSpec) -> dict[str, Any]:
    from hpclm.core.spec import to_dict

    return to_dict(spec)


def _record(prepared: Prepared, image_jobs: tuple[str, ...] = ()) -> Record:
    now = time.time()
    stages = tuple(
        StageRecord(job.stage, spec.task, job) for job, spec in zip(prepared.jobs, prepared.specs, strict=True)
    )
    return Record(
        run=prepared.run,
        name=prepared.plan.name,
        created_at=now,
        user=user_name(),
        host=socket.gethostname(),
        site=prepared.site,
        recipe=str(prepared.request.recipe.absolute()),
        overrides=_overrides(prepared.request),
        stages=stages,
        submits=(SubmitRecord(1, now, tuple(job.stage for job in prepared.jobs), image_jobs=image_jobs),),
    )


def _overrides(request: Request) -> tuple[str, ...]:
    extra = [f"resources.nodes={request.nodes}"] if request.nodes is not None else []
    if request.devices_per_node is not None:
        extra.append(f"resources.devices_per_node={request.devices_per_node}")
    return (*request.overrides, *extra)


def _make(folder: Path) -> Sequence[Path]:
    """Make the folder of runs; returns what was not there before, deepest first. Raises SiteError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SiteError(
            f"{folder}: the runs folder cannot be made: {error.strerror}; name another --runs-dir"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SiteError(f"{folder}: the runs folder cannot be written to; name another --runs-dir")
    return missing


def run_id(name: str | None, recipe_name: str) -> str:
    chosen = recipe_name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", chosen):
        raise SiteError(
            f"--name {chosen!r}: up to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        )
    return f"{chosen}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
