"""From a recipe to a submitted run.

`prepare` decides everything and changes nothing; `submit` writes the run directory and calls the scheduler. A refused
submit leaves nothing behind; one that fails after the scheduler accepted a job leaves a record of it.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.containers.image_cache import Import, pull
from hpclm.core.errors import PlanError, SiteError
from hpclm.core.files import write_json, write_text
from hpclm.core.layout import RunPaths
from hpclm.core.payload import stage_payload
from hpclm.core.processes import user_name
from hpclm.core.records import to_dict
from hpclm.core.sealed import write_sealed
from hpclm.core.secrets import missing
from hpclm.core.site import Site
from hpclm.core.sweep_layout import RunsFolder
from hpclm.recipe.sites import load_site
from hpclm.recovery import bad_nodes
from hpclm.runs.job_building import JobBuilder, import_of
from hpclm.runs.mounts import mount_notes
from hpclm.runs.provenance import capture
from hpclm.runs.record import Record, Run, StageRecord, SubmitRecord, read_run, write_record
from hpclm.runs.runs_folder import runs_folder
from hpclm.schedulers.capabilities import SiteCapabilities
from hpclm.schedulers.interface import JobScript, Submission, scheduler_of
from hpclm.schedulers.jobs import StageJob

if TYPE_CHECKING:
    from hpclm.core.engine_spec import EngineSpec
    from hpclm.planning import Plan
    from hpclm.planning.input_checks import InputChecks
    from hpclm.recipe import LoadedRecipe

_BUILDING = ".building"
_LEFTOVER_S = 3600.0


@dataclass(frozen=True)
class Request:
    """What the user requested."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    nodes: int | None = None
    devices_per_node: int | None = None
    site: str = "local"
    runs_dir: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A prepared run, before it exists on disk.

    Attributes:
        payload: folder of the code that its ranks will run.
        specs: what the ranks will read; empty where the plan has errors.
        problems: why it cannot start here (no scheduler, or it does not fit); a dry run
            shows them, a submit is refused.
        imports: images that must be imported before a job can start.
    """

    request: Request
    loaded: LoadedRecipe
    plan: Plan
    site: Site
    paths: RunPaths
    payload: Path
    specs: tuple[EngineSpec, ...]
    jobs: tuple[StageJob, ...]
    problems: tuple[str, ...]
    imports: tuple[Import, ...] = ()

    @property
    def run(self) -> str:
        return self.paths.name

    @property
    def notes(self) -> list[str]:
        """Notes for the user that are not errors."""
        notes = scheduler_of(self.site).notes(self.jobs)
        if self.jobs and self.jobs[0].exclude:
            nodes = ", ".join(self.jobs[0].exclude)
            notes.append(f"excluded: {nodes}, reported as faulty in the last day; see `hpclm nodes`")
        for stage in self.plan.stages:
            notes += mount_notes(stage, self.site, self.paths.root, Path.home())
        return notes


class Preparer:
    """Reads, plans and checks recipes for one site; the scheduler is queried and each input file is read once."""

    def __init__(self, site: str, runs_dir: Path | None) -> None:
        from hpclm.planning.input_checks import InputChecks

        self.site = load_site(site)
        self.folder = RunsFolder(runs_folder(runs_dir, self.site))
        self.checks: InputChecks = InputChecks()
        self._known: dict[tuple[bool, bool], SiteCapabilities] = {}

    def prepare(self, request: Request, paths: RunPaths | None = None, payload: Path | None = None) -> Prepared:
        """Everything about the run that `request` asks for. Raises RecipeError and SiteError; findings are the plan's.

        Args:
            paths: the run's folder if it is not a new folder next to the other runs (a member of a sweep).
            payload: the code of its ranks where it is not in the run.
        """
        from hpclm.planning import make_plan, stage_specs
        from hpclm.recipe import load

        loaded = load(
            request.recipe,
            list(request.overrides),
            nodes=request.nodes,
            devices_per_node=request.devices_per_node,
        )
        plan = make_plan(loaded, checks=self.checks)
        capabilities = self._capabilities(plan)
        paths = paths or self.folder.run(run_id(request.name, plan.name))
        payload = payload or paths.payload
        excluded = self._excluded(capabilities, plan)
        builder = JobBuilder(capabilities, paths, payload, plan.name, self.folder, excluded)
        jobs, problems = builder.jobs(plan.stages)
        site = capabilities.site
        return Prepared(
            request=request,
            loaded=loaded,
            plan=plan,
            site=site,
            paths=paths,
            payload=payload,
            specs=() if plan.errors else tuple(stage_specs(plan, paths.name, paths.root)),
            jobs=tuple(jobs),
            problems=(*scheduler_of(site).check_fit(capabilities, jobs), *problems, *missing(site.secrets)),
            imports=tuple(one for stage in plan.stages if (one := import_of(stage, site, self.folder)) is not None),
        )

    def _capabilities(self, plan: Plan) -> SiteCapabilities:
        gpu = any(stage.resources.device == "gpu" for stage in plan.stages)
        container = any(stage.container is not None for stage in plan.stages)
        if (gpu, container) not in self._known:
            found = scheduler_of(self.site).capabilities(self.site, gpu=gpu, container=container)
            self._known[gpu, container] = found
        return self._known[gpu, container]

    def _excluded(self, capabilities: SiteCapabilities, plan: Plan) -> tuple[str, ...]:
        """Nodes of this site on the bad-node list, unless too few would be left without them."""
        bad = bad_nodes.suspects(self.folder.root, capabilities.site.name)
        most = max(stage.resources.nodes for stage in plan.stages)
        return tuple(bad) if capabilities.spares(len(bad), most) else ()


def prepare(request: Request) -> Prepared:
    """Read, plan and check. Raises RecipeError, SiteError, or PlanError with every finding at once."""
    prepared = Preparer(request.site, request.runs_dir).prepare(request)
    refuse_errors(prepared.plan)
    return prepared


def refuse_errors(plan: Plan) -> None:
    """Raises PlanError with every error finding, one per line."""
    if plan.errors:
        raise PlanError("\n".join(str(finding) for finding in plan.errors))


def scripts(prepared: Prepared) -> list[tuple[StageJob, JobScript]]:
    """Each stage's job with its script: the exact text that a submit uses."""
    words = {job.stage: f"<job id of {job.stage}>" for job in prepared.jobs}
    scheduler = scheduler_of(prepared.site)
    return [(job, scheduler.script(job, prepared.site, words)) for job in prepared.jobs]


def submit(prepared: Prepared, log: Callable[[str], None] = lambda line: None) -> Run:
    """Create the run and start it, after its images are imported or their imports are submitted.
    `log` prints lines for the user.

    Raises PlanError, SiteError or SchedulerError; then nothing is left behind, unless the message says so.
    """
    refuse_errors(prepared.plan)
    if prepared.problems:
        raise SiteError("\n".join(prepared.problems))
    scripts(prepared)  # text that cannot be quoted is refused before anything is written
    jobs = import_images(prepared, log)
    made_folder = make_folders(prepared.paths.root.parent)
    _sweep_up(prepared.paths.root.parent)
    try:
        run = write(prepared, jobs)
        return start(run, list(prepared.jobs))
    except BaseException:
        if not _was_submitted(prepared.paths):
            shutil.rmtree(prepared.paths.root, ignore_errors=True)
            remove_made(made_folder, RunsFolder(prepared.paths.root.parent))
        raise


def import_images(prepared: Prepared, log: Callable[[str], None]) -> tuple[str, ...]:
    """Import every missing image; returns the import jobs if the site uses jobs for that."""
    missing = [one for one in dict.fromkeys(prepared.imports) if not one.target.exists()]
    jobs = []
    for one in missing:
        in_job = prepared.site.container.pull == "job"
        job = scheduler_of(prepared.site).submit_import(one, prepared.site) if in_job else None
        if job is None:
            pull(one, log)
        else:
            jobs.append(job)
    return tuple(jobs)


def start(run: Run, jobs: Sequence[StageJob], parents: Mapping[str, str] | None = None) -> Run:
    """Submit the jobs to the scheduler. The record is on disk before, with this submit in it but without job ids.

    `parents`: job ids, by stage, of an earlier submit's jobs on which these depend.
    """
    latest = [run]

    def note(taken: dict[str, str], error: str | None) -> None:
        """Record what the scheduler has accepted so far, and why the rest failed, if it did."""
        now = latest[0]
        submit = next(submit for submit in now.record.submits if submit.number == jobs[0].submit)
        latest[0] = now.save(now.record.with_submit(dataclasses.replace(submit, job_ids=taken, error=error)))

    wait_for = run.record.submits[-1].image_jobs
    scheduler_of(run.record.site).start(submission_of(run, jobs, parents or {}, wait_for), note)
    return latest[0]


def submission_of(
    run: Run, jobs: Sequence[StageJob], parents: Mapping[str, str], wait_for: tuple[str, ...] = ()
) -> Submission:
    """A run's jobs as a scheduler takes them."""
    record = run.record
    return Submission(run.paths, record.user, record.site, tuple(jobs), run.payload, parents, wait_for)


def _was_submitted(paths: RunPaths) -> bool:
    """Whether a scheduler has, or may have, jobs of this run."""
    try:
        record = read_run(paths.root).record
    except Exception:
        return False
    return any(submit.job_ids or submit.error for submit in record.submits) or paths.local(1).state.exists()


def write(prepared: Prepared, image_jobs: tuple[str, ...] = (), *, stages: bool = True) -> Run:
    """The run directory: built under a temporary name, then renamed, so it exists completely or not at all.

    A member of a sweep has its code, recipe and environment in the sweep (`share`), and its resolved recipe.

    Args:
        stages: with the stages' folders.
    """
    final, member = prepared.paths, prepared.payload != prepared.paths.payload
    indent = None if member else 2
    building = RunPaths(final.root.with_name(f".{final.name}{_BUILDING}"))
    try:
        building.root.mkdir()
        record = _record(prepared, image_jobs)
        write_json(building.plan, prepared.plan.to_dict(), indent=indent)
        for job, spec in zip(prepared.jobs, prepared.specs, strict=True) if stages else ():
            stage = building.stage(job.stage)
            write_sealed(stage.spec, to_dict(spec), indent=indent)
            stage.job_folder.mkdir()  # a job whose log folder is missing fails without a message
        if not member:
            write_json(building.resolved, prepared.loaded.resolved())
            share(prepared, building.root)
            stage_payload(building.payload, shared=RunsFolder(final.root.parent).payloads)
        write_record(building, record)
        building.root.rename(final.root)
    except BaseException as error:
        shutil.rmtree(building.root, ignore_errors=True)
        if isinstance(error, OSError):
            raise SiteError(
                f"{final.root.parent}: the run cannot be written there: {error.strerror}; free some space, or choose "
                "another --runs-dir"
            ) from error
        raise
    return Run(final, record)


def share(prepared: Prepared, folder: Path) -> None:
    """What all members of a sweep have in common: the recipe as it was written, and what it was started with."""
    paths = RunPaths(folder)
    write_text(paths.recipe, prepared.loaded.text)
    write_json(paths.environment, capture(prepared.request.recipe.absolute()))


def _sweep_up(folder: Path) -> None:
    """Remove what killed submits have left, after an hour."""
    for leftover in folder.glob(f".*{_BUILDING}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                shutil.rmtree(leftover)


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
        payload=None if prepared.payload == prepared.paths.payload else str(prepared.payload),
        root=str(prepared.paths.root),
    )


def _overrides(request: Request) -> tuple[str, ...]:
    extra = [f"resources.nodes={request.nodes}"] if request.nodes is not None else []
    if request.devices_per_node is not None:
        extra.append(f"resources.devices_per_node={request.devices_per_node}")
    return (*request.overrides, *extra)


def remove_made(made: Sequence[Path], runs: RunsFolder) -> None:
    """Remove folders made for a submit that failed, unless something else has come into them."""
    if made and not [path for path in runs.root.iterdir() if path != runs.payloads]:
        shutil.rmtree(runs.payloads, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def make_folders(folder: Path) -> Sequence[Path]:
    """Create the runs folder; returns the created folders, deepest first. Raises SiteError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SiteError(
            f"{folder}: the runs folder cannot be created: {error.strerror}; choose another --runs-dir"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SiteError(f"{folder}: the runs folder cannot be written to; choose another --runs-dir")
    return missing


def run_id(name: str | None, recipe_name: str) -> str:
    chosen = recipe_name if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", chosen):
        raise SiteError(
            f"--name {chosen!r}: use up to 64 letters, digits, dots, dashes and underscores, "
            "starting with a letter or digit"
        )
    return f"{chosen}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
