"""The plan's stages as the ranks will read them, once the run folder is known."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.engine_spec import EngineSpec
from hpclm.core.errors import PlanError
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.core.layout import RunPaths
from hpclm.core.spec import IndexedData, ProgramSpec, ProgramStageSpec
from hpclm.planning.plan import Plan

# Filled in once the run folder is known.
STAGE_DIR, RUN_DIR = "@HPCLM_STAGE_DIR@", "@HPCLM_RUN_DIR@"
_STAGE = "@HPCLM_STAGE@/"
_TOKENS = "@HPCLM_TOKENS@/"
_ROWS = "@HPCLM_ROWS@/"
# an argument is a format string
_BRACES = {ord("{"): "{{", ord("}"): "}}"}


def checkpoints_of(stage: str) -> str:
    """Another stage's checkpoints, before the run folder is known."""
    return f"{_STAGE}{stage}"


def tokens_of(stage: str) -> str:
    """The prefix of the data sets that a stage makes in its own folder."""
    return f"{_TOKENS}{stage}/{stage}"


def rows_of(stage: str) -> str:
    """The folder of the rows that a stage prepares."""
    return f"{_ROWS}{stage}"


def is_in_run(path: str) -> bool:
    """Whether a path is one that another stage of the run makes."""
    return path.startswith((_STAGE, _TOKENS, _ROWS))


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
        program = _placed_program(spec.program, stage_dir, paths)
        return dataclasses.replace(spec, run=run, stage_dir=stage_dir, program=program)
    fields: Any = spec  # a dataclass, of whatever engine
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(fields)}
    moved = {name: _location(value, paths) for name, value in values.items() if isinstance(value, str)}
    moved |= {
        name: _placed_prefixes(value, paths) for name, value in values.items() if name in ("indexed", "corpus", "data")
    }
    found: EngineSpec = dataclasses.replace(fields, **{**moved, "run": run, "stage_dir": stage_dir})
    return found


def _placed_prefixes(source: Any, paths: RunPaths) -> Any:
    """Data sets, or the corpus of them, or rows, with the prefixes that are in the run's folder."""
    if isinstance(source, InstructionData) and source.cache is not None and source.cache.startswith(_ROWS):
        return dataclasses.replace(source, cache=str(paths.stage(source.cache.removeprefix(_ROWS)).data))
    if isinstance(source, CorpusSpec):
        return dataclasses.replace(source, prefix=_prefix(source.prefix, paths))
    if isinstance(source, IndexedData):
        return dataclasses.replace(source, paths=[_prefix(one, paths) for one in source.paths])
    return source


def _prefix(prefix: str, paths: RunPaths, *, in_argument: bool = False) -> str:
    if not prefix.startswith(_TOKENS):
        return prefix
    stage, _, name = prefix.removeprefix(_TOKENS).partition("/")
    folder = str(paths.stage(stage).tokens)
    return f"{folder.translate(_BRACES) if in_argument else folder}/{name}"


def _placed_program(program: ProgramSpec, stage_dir: str, paths: RunPaths) -> ProgramSpec:
    """The program with the paths in its files, and those of data sets in its arguments, filled in."""
    files = {
        key: text.replace(STAGE_DIR, _in_json(stage_dir)).replace(RUN_DIR, _in_json(str(paths.root)))
        for key, text in program.files.items()
    }
    argv = [_prefix(one, paths, in_argument=True) for one in program.argv]
    return dataclasses.replace(program, files=files, argv=argv)


def _in_json(text: str) -> str:
    """The text as it is written inside a quoted JSON string."""
    return json.dumps(text)[1:-1]


def _location(path: str, paths: RunPaths) -> str:
    """Where another stage leaves its checkpoints, or the text as it is."""
    if not is_in_run(path):
        return path
    return str(paths.stage(path.removeprefix(_STAGE)).checkpoints)
