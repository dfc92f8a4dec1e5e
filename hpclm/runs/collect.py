"""Collects the results of a run in one self-contained folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError, HpclmError, IncompleteError, RunNotFoundError
from hpclm.core.files import read_object, write_json, write_text
from hpclm.core.layout import RunPaths, StagePaths
from hpclm.core.stage_result import result_of
from hpclm.core.states import StageState
from hpclm.core.sweep_layout import SweepPaths
from hpclm.core.sweep_recipes import recipe_of
from hpclm.formats.checkpoint_manifest import damage
from hpclm.formats.checkpoint_pointers import Which, pointed
from hpclm.planning.task import task_named
from hpclm.runs import predictions, summary
from hpclm.runs.record import Run
from hpclm.runs.results_folder import building, refuse_foreign, writable, write_plain
from hpclm.runs.status import RunStatus, scores_in, status_of

PRED_FILE = "test-results.txt"
_LARGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Collected:
    """What was gathered: the folder, the predictions' file (None: the run has no evaluation), and the summary."""

    folder: Path
    pred_file: Path | None
    summary: dict[str, Any]


def collect(
    run: Run,
    *,
    pred_file: Path | None = None,
    out: Path | None = None,
    stage: str | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Collected:
    """Gather the run's results.

    Args:
        pred_file: a second file for the predictions, one line per test example in the test files' order; next to it,
            with .jsonl added to its name, the same with ids, prompt, prediction and answer as separate fields. A device
            or a pipe gets the lines alone.
        out: the folder (default: `results` in the run); replaced when an earlier collect of this run made it.
        stage: the evaluate stage, if there are several and it is not the last.
        log: prints a line for the user while checkpoints are verified.

    Raises IncompleteError, and leaves an earlier folder as it was, when any stage is not complete, a prediction is
    missing or there twice, or a checkpoint is damaged; HpclmError where something else is in the way.
    """
    (status,) = status_of([run])
    _refuse_incomplete(run, status)
    chosen = _evaluation(run, stage)
    if chosen is None and pred_file is not None:
        raise IncompleteError(f"run {run.record.run} has no evaluate stage, so there is nothing for {pred_file}")
    target = writable(pred_file) if pred_file else None
    rows = predictions.merged(run.paths.stage(chosen)) if chosen else []
    folder = Path(os.path.abspath((out or run.paths.results).expanduser()))  # noqa: PTH100 - links are kept
    if target is not None and target.is_relative_to(folder.resolve()):
        raise HpclmError(f"{pred_file} is inside {folder}, which gets the predictions as {PRED_FILE}; choose another")
    facts = _facts(run, status, chosen)
    refuse_foreign(folder, run.record.run, run.paths.results)
    _refuse_damaged(run, log)
    with building(folder, run.record.run, run.paths.results) as made:
        _fill(made, run, facts, chosen, rows)
        if target is not None and write_plain(target, _lines(rows)):
            write_text(target.with_name(f"{target.name}.jsonl"), _json_lines(rows))
    written = None
    if chosen is not None:
        written = pred_file.expanduser().absolute() if pred_file else folder / PRED_FILE
    return Collected(folder, written, facts)


def _refuse_damaged(run: Run, log: Callable[[str], None]) -> None:
    """Raises IncompleteError for a checkpoint that is not as it was written."""
    for stage in run.record.stages:
        paths = run.paths.stage(stage.name)
        for folder in dict.fromkeys(one for one in (_named(paths, "best"), _named(paths, "latest")) if one):
            size = sum(file.stat().st_size for file in folder.iterdir())
            if size > _LARGE_BYTES:
                log(f"verifying {folder} ({size / (1 << 30):.1f} GiB)")
            wrong = damage(folder)
            if wrong is not None:
                raise IncompleteError(f"stage {stage.name}: {wrong}; the checkpoint is damaged: train it again")


def _refuse_incomplete(run: Run, status: RunStatus) -> None:
    open_stages = [stage for stage in status.stages if stage.state is not StageState.COMPLETED]
    if open_stages:
        what = "; ".join(
            f"stage {one.name} is {one.state}" + (f" ({one.reason})" if one.reason else "") for one in open_stages
        )
        raise IncompleteError(f"run {run.record.run} is not complete: {what}")


def _evaluation(run: Run, stage: str | None) -> str | None:
    found = [one.name for one in run.record.stages if task_named(one.task).answers]
    if stage is None:
        return found[-1] if found else None
    if stage not in found:
        raise RunNotFoundError(
            f"run {run.record.run} has no evaluate stage {stage!r}; it has {', '.join(found) or 'none'}"
        )
    return stage


def _fill(folder: Path, run: Run, facts: dict[str, Any], chosen: str | None, rows: list[dict[str, Any]]) -> None:
    for source in (run.paths.recipe, run.paths.resolved, run.paths.plan, run.paths.environment, run.paths.record):
        there = run.paths.shared(source)
        if there.is_file():  # a member of a sweep that was copied alone has not its recipe
            shutil.copyfile(there, folder / source.name)
    if not (folder / run.paths.resolved.name).exists():
        recipe = recipe_of(SweepPaths(run.paths.root.parent), run.record.run)
        if recipe is not None:
            write_json(folder / run.paths.resolved.name, recipe)
    if chosen is not None:
        write_text(folder / PRED_FILE, _lines(rows))
        write_text(folder / "predictions.jsonl", _json_lines(rows))
        write_json(folder / "scores.json", facts["scores"])
    for stage in run.record.stages:
        paths = run.paths.stage(stage.name)
        target = folder / "stages" / stage.name
        target.mkdir(parents=True)
        for source in (paths.spec, paths.result, paths.metrics):
            if source.exists():
                shutil.copyfile(source, target / source.name)
        for source in paths.all_device_metrics():
            (target / source.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(source, target / source.parent.name / source.name)
        _checkpoints(paths, folder / "checkpoints" / stage.name)
        _outputs(paths, folder / "outputs" / stage.name)
    write_json(folder / "summary.json", facts)
    write_text(folder / "summary.md", summary.markdown(facts))


def _outputs(paths: StagePaths, target: Path) -> None:
    """The declared output files of a program."""
    for name in (result_of(paths) or {}).get("outputs") or []:
        source = paths.root / str(name)
        if source.resolve().is_relative_to(paths.root.resolve()) and source.is_file():
            (target / str(name)).parent.mkdir(parents=True, exist_ok=True)
            _link(str(source), str(target / str(name)))


def _checkpoints(paths: StagePaths, target: Path) -> None:
    """The best and the last checkpoint of a stage, and what is needed to load them.

    Hard links where the file system supports them: no second copy of a large model, and the files stay when the run is
    deleted. A checkpoint is never changed once written, so a link is as good as a copy.
    """
    chosen = {"best": _named(paths, "best"), "last": _named(paths, "latest")}
    if not any(chosen.values()):
        return
    target.mkdir(parents=True)
    for name, folder in chosen.items():
        if folder is not None:
            shutil.copytree(folder, target / name, copy_function=_link)
    for file in sorted(paths.checkpoints.iterdir()):
        if file.is_file() and file not in (paths.best, paths.latest):
            _link(str(file), str(target / file.name))


def _named(paths: StagePaths, which: Which) -> Path | None:
    """The checkpoint that a pointer file names, None without a pointer. Raises IncompleteError if it does not exist."""
    try:
        return pointed(paths.checkpoints, which)
    except CheckpointError as error:
        raise IncompleteError(str(error)) from None


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target


def _facts(run: Run, status: RunStatus, chosen: str | None) -> dict[str, Any]:
    """The facts of the summary; JSON-ready."""
    stages = []
    for stage in run.record.stages:
        paths = run.paths.stage(stage.name)
        result = result_of(paths) or {}
        job = stage.job
        stages.append(
            {
                "name": stage.name,
                "task": stage.task,
                "nodes": job.nodes,
                "ranks": job.world_size,
                "job_id": next(one.job_id for one in status.stages if one.name == stage.name),
                "submits": sum(stage.name in submit.stages for submit in run.record.submits),
                "result": result,
                "best": read_object(paths.best),
                "last": read_object(paths.latest),
            }
        )
    scores = scores_in(result_of(run.paths.stage(chosen))) if chosen else None
    plan = read_object(run.paths.plan) or {}
    return {
        "run": run.record.run,
        "name": run.record.name,
        "recipe": run.record.recipe,
        "overrides": list(run.record.overrides),
        "site": run.record.site.name,
        "created_at": run.record.created_at,
        "evaluation": chosen,
        "scores": scores,
        "stages": stages,
        "parallel": _splits(plan.get("stages")),
        "environment": _environment(run.paths),
    }


def _splits(stages: object) -> dict[str, dict[str, Any]]:
    """By stage, as a plan has them; a damaged one has not all."""
    keys = ("tensor_parallel", "pipeline_parallel", "data_parallel")
    found = [one for one in stages if isinstance(one, dict)] if isinstance(stages, list) else []
    return {one["name"]: {key: one.get(key) for key in keys} for one in found if isinstance(one.get("name"), str)}


def _environment(paths: RunPaths) -> dict[str, Any]:
    known = read_object(paths.shared(paths.environment)) or {}
    return {key: known.get(key) for key in ("command", "user", "host", "python", "git")}


def _json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(predictions.line(row) + "\n" for row in rows)
