"""The plan's stages as the ranks will read them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

from hpclm.core.errors import PlanError
from hpclm.core.spec import ProgramSpec, ProgramStageSpec, StageSpec
from hpclm.engines.nemo import config
from hpclm.planning.plan import Origin, Plan, StagePlan


def stage_specs(plan: Plan, run: str, run_dir: Path) -> list[StageSpec | ProgramStageSpec]:
    """One spec a stage, in order; every path absolute. Raises PlanError for a plan with errors."""
    if plan.errors:
        raise PlanError("\n".join(str(finding) for finding in plan.errors))
    root = Path(os.path.abspath(run_dir))  # noqa: PTH100 - the run directory as the user named it, links kept
    return [_spec(stage, run, root) for stage in plan.stages]


def _spec(stage: StagePlan, run: str, root: Path) -> StageSpec | ProgramStageSpec:
    work, parallel = stage.work, stage.parallel
    device: Literal["cpu", "gpu"] = "cpu" if stage.resources.device == "cpu" else "gpu"
    if stage.program is not None:
        assert parallel is not None
        return ProgramStageSpec(
            run=run,
            stage=stage.name,
            stage_dir=str(_stage_dir(root, stage.name)),
            device=device,
            parallel=parallel,
            program=_placed(stage.program, root, stage.name),
            recovery=stage.recovery,
        )
    # A plan without errors has both: whatever keeps them away is an error finding.
    assert work is not None
    assert parallel is not None
    return StageSpec(
        run=run,
        stage=stage.name,
        stage_dir=str(_stage_dir(root, stage.name)),
        task=stage.task,
        device=device,
        model=work.model,
        tokenizer=work.tokenizer,
        parallel=parallel,
        batch=work.batch,
        trainer=work.trainer,
        optim=work.optim,
        checkpoint=work.checkpoint,
        text=work.text,
        data=work.data,
        templates=list(work.templates),
        prompt=work.prompt,
        generation=work.generation,
        base=_location(root, work.base),
        prompts=_location(root, work.prompts),
        recovery=stage.recovery,
    )


def _placed(program: ProgramSpec, root: Path, name: str) -> ProgramSpec:
    """The program with its files' places known."""
    folder, run = str(_stage_dir(root, name)), str(root)
    files = {
        key: text.replace(config.STAGE_DIR, _in_json(folder)).replace(config.RUN_DIR, _in_json(run))
        for key, text in program.files.items()
    }
    return dataclasses.replace(program, files=files)


def _in_json(text: str) -> str:
    """As it stands inside a quoted string of JSON."""
    return json.dumps(text)[1:-1]


def _stage_dir(root: Path, name: str) -> Path:
    return root / "stages" / name


def _location(root: Path, origin: Origin | None) -> str | None:
    """Where another stage leaves its checkpoints (see runs/paths.py), or the path the recipe gives."""
    if origin is None:
        return None
    return str(_stage_dir(root, origin.stage) / "checkpoints") if origin.stage else origin.path
