"""The plan's stages as the ranks will read them, once the run folder is known."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from hpclm.core.engine_spec import EngineSpec
from hpclm.core.errors import PlanError
from hpclm.core.layout import RunPaths
from hpclm.core.spec import ProgramSpec, ProgramStageSpec
from hpclm.planning.plan import Plan

# Filled in once the run folder is known.
STAGE_DIR, RUN_DIR = "@HPCLM_STAGE_DIR@", "@HPCLM_RUN_DIR@"
_STAGE = "@HPCLM_STAGE@/"


def checkpoints_of(stage: str) -> str:
    """Another stage's checkpoints, before the run folder is known."""
    return f"{_STAGE}{stage}"


def is_in_run(path: str) -> bool:
    """Whether a path is one that another stage of the run makes."""
    return path.startswith(_STAGE)


def stage_specs(plan: Plan, run: str, run_dir: Path) -> list[EngineSpec]:
    """One spec per stage, in order; every path absolute. Raises PlanError for a plan with errors."""
    if plan.errors:
        raise PlanError("\n".join(str(finding) for finding in plan.errors))
    paths = RunPaths(Path(os.path.abspath(run_dir)))  # noqa: PTH100 - the run directory as the user wrote it, links kept
    found = []
    for stage in plan.stages:
        # if a spec cannot be made, there is an error finding
        assert stage.spec is not None
        found.append(placed(stage.spec, run, paths))
    return found


def placed(spec: EngineSpec, run: str, paths: RunPaths) -> EngineSpec:
    """The spec in a run's folder."""
    stage_dir = str(paths.stage(spec.stage).root)
    if isinstance(spec, ProgramStageSpec):
        program = _placed_program(spec.program, stage_dir, str(paths.root))
        return dataclasses.replace(spec, run=run, stage_dir=stage_dir, program=program)
    fields: Any = spec  # a dataclass, of whatever engine
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(fields)}
    moved = {name: _location(value, paths) for name, value in values.items() if isinstance(value, str)}
    found: EngineSpec = dataclasses.replace(fields, **{**moved, "run": run, "stage_dir": stage_dir})
    return found


def _placed_program(program: ProgramSpec, stage_dir: str, run_dir: str) -> ProgramSpec:
    """The program with the paths of its files filled in."""
    files = {
        key: text.replace(STAGE_DIR, _in_json(stage_dir)).replace(RUN_DIR, _in_json(run_dir))
        for key, text in program.files.items()
    }
    return dataclasses.replace(program, files=files)


def _in_json(text: str) -> str:
    """The text as it is written inside a quoted JSON string."""
    return json.dumps(text)[1:-1]


def _location(path: str, paths: RunPaths) -> str:
    """Where another stage leaves its checkpoints, or the text as it is."""
    if not is_in_run(path):
        return path
    return str(paths.stage(path.removeprefix(_STAGE)).checkpoints)
