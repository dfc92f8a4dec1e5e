"""Collects the results of a run in one self-contained folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import HpclmError, IncompleteError, RunNotFoundError
from hpclm.core.files import read_object, write_json, write_text
from hpclm.core.layout import RunPaths, StagePaths
from hpclm.core.states import StageState
from hpclm.planning.task import task_named
from hpclm.runs import predictions, summary
from hpclm.runs.record import Run
from hpclm.runs.status import RunStatus, status_of

PRED_FILE = "test-results.txt"


@dataclass(frozen=True)
class Collected:
    """What was gathered: the folder, the predictions' file (None: the run has no evaluation), and the summary."""

    folder: Path
    pred_file: Path | None
    summary: dict[str, Any]


def collect(run: Run, *, pred_file: Path | None = None, out: Path | None = None, stage: str | None = None) -> Collected:
    """Gather the run's results.

    Args:
        pred_file: a second file for the predictions, one line per test example in the test files' order; next to it,
            with .jsonl added to its name, the same with ids, prompt, prediction and answer as separate fields.
        out: the folder (default: `results` in the run); replaced when an earlier collect made it.
        stage: the evaluate stage, if there are several and it is not the last.

    Raises IncompleteError, and leaves an earlier folder as it was, when any stage is not complete or a prediction is
    missing or there twice.
    """
    (status,) = status_of([run])
    _refuse_incomplete(run, status)
    chosen = _evaluation(run, stage)
    if chosen is None and pred_file is not None:
        raise IncompleteError(f"run {run.record.run} has no evaluate stage, so there is nothing for {pred_file}")
    rows = predictions.merged(run.paths.stage(chosen)) if chosen else []
    folder = (out or run.paths.results).expanduser().absolute()
    facts = _facts(run, status, chosen)
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        building.chmod(0o755)
        _fill(building, run, facts, chosen, rows)
        shutil.rmtree(folder, ignore_errors=True)
        building.replace(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    written = None
    if chosen is not None:
        written = pred_file.expanduser().absolute() if pred_file else folder / PRED_FILE
        if pred_file is not None:
            write_text(written, _lines(rows))
            write_text(written.with_name(f"{written.name}.jsonl"), _json_lines(rows))
    return Collected(folder, written, facts)


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


def _refuse_foreign(folder: Path) -> None:
    """Only a folder that a collect made is ever replaced."""
    if folder.exists() and not folder.is_dir():
        raise HpclmError(f"{folder} is a file; give a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "summary.json").exists():
        raise HpclmError(f"{folder} contains other files; choose a new or empty folder with --out")


def _fill(folder: Path, run: Run, facts: dict[str, Any], chosen: str | None, rows: list[dict[str, Any]]) -> None:
    for source in (run.paths.recipe, run.paths.resolved, run.paths.plan, run.paths.environment, run.paths.record):
        shutil.copyfile(source, folder / source.name)
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
        _checkpoints(paths, folder / "checkpoints" / stage.name)
        _outputs(paths, folder / "outputs" / stage.name)
    write_json(folder / "summary.json", facts)
    write_text(folder / "summary.md", summary.markdown(facts))


def _outputs(paths: StagePaths, target: Path) -> None:
    """The declared output files of a program."""
    for name in (read_object(paths.result) or {}).get("outputs") or []:
        source = paths.root / str(name)
        if source.resolve().is_relative_to(paths.root.resolve()) and source.is_file():
            (target / str(name)).parent.mkdir(parents=True, exist_ok=True)
            _link(str(source), str(target / str(name)))


def _checkpoints(paths: StagePaths, target: Path) -> None:
    """The best and the last checkpoint of a stage, and what is needed to load them.

    Hard links where the file system supports them: no second copy of a large model, and the files stay when the run is
    deleted. A checkpoint is never changed once written, so a link is as good as a copy.
    """
    chosen = {name: _named(paths, file) for name, file in (("best", paths.best), ("last", paths.latest))}
    if not any(chosen.values()):
        return
    target.mkdir(parents=True)
    for name, folder in chosen.items():
        if folder is not None:
            shutil.copytree(folder, target / name, copy_function=_link)
    for file in sorted(paths.checkpoints.iterdir()):
        if file.is_file() and file not in (paths.best, paths.latest):
            _link(str(file), str(target / file.name))


def _named(paths: StagePaths, pointer: Path) -> Path | None:
    """The checkpoint a pointer file names, None without a pointer. Raises IncompleteError if it does not exist."""
    record = read_object(pointer)
    if record is None:
        return None
    folder = paths.checkpoints / str(record.get("checkpoint"))
    if not folder.is_dir():
        raise IncompleteError(f"{pointer} points to {folder.name}, which does not exist")
    return folder


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
        result = read_object(paths.result) or {}
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
    scores = (read_object(run.paths.stage(chosen).result) or {}).get("scores") if chosen else None
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
        "parallel": {
            one["name"]: {key: one.get(key) for key in ("tensor_parallel", "pipeline_parallel", "data_parallel")}
            for one in plan.get("stages", [])
        },
        "environment": _environment(run.paths),
    }


def _environment(paths: RunPaths) -> dict[str, Any]:
    known = read_object(paths.environment) or {}
    return {key: known.get(key) for key in ("command", "user", "host", "python", "git")}


def _json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(predictions.line(row) + "\n" for row in rows)
