"""From a recipe to a plan: every stage given to its engine, every check run, every finding kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclm.core.findings import Findings
from hpclm.core.registries import ENGINES
from hpclm.planning import lowering, section_checks
from hpclm.planning.base_model import BaseModel, Earlier
from hpclm.planning.engine_protocol import Engine, StageRequest, engine_named
from hpclm.planning.input_checks import InputChecks
from hpclm.planning.plan import Plan, StagePlan
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.loading import LoadedRecipe


def make_plan(loaded: LoadedRecipe, *, files: bool = True, checks: InputChecks | None = None) -> Plan:
    """What the recipe means on its devices.

    Args:
        files: also look at the files the recipe names: rows, text, tokenizers and checkpoints. If False, nothing is
            read, and the architecture must be given in the recipe.
        checks: reads them; passed by a caller that plans many similar recipes, so that each file is read once.

    Raises nothing for a recipe that cannot run: `Plan.errors` lists everything that is wrong with it.
    """
    findings = Findings()
    checks = checks or InputChecks()
    contexts = [StageContext(stage, findings, files) for stage in loaded.stages]
    names = [context.recipe.name for context in contexts]
    earlier: dict[str, Earlier] = {}
    plans = []
    for context in contexts:
        engine = engine_named(context.recipe.engine)
        if context.recipe.task in engine.tasks:
            stage, base = engine.plan(StageRequest(context, earlier, names, checks))
        else:
            stage, base = _mismatch(context, engine), BaseModel()
        plans.append(stage)
        earlier[context.recipe.name] = Earlier(context, base)
    section_checks.check_unused(loaded, contexts, findings)
    for note in loaded.doubtful_keys:
        findings.warning(f"{note.origin} {note.key}", note.note, "keys of the other tool", note.key)
    return Plan(loaded.name, str(loaded.path), tuple(plans), tuple(findings.items))


def _mismatch(stage: StageContext, engine: Engine) -> StagePlan:
    """A stage whose engine does not support its task: a finding, and an empty plan."""
    recipe = stage.recipe
    able = [name for name, one in ENGINES.items() if recipe.task in one.tasks]
    if stage.loaded.wrote("engine"):
        what = f"engine {engine.name} does not support {recipe.task}; choose {' or '.join(engine.tasks)}"
        stage.error(("task",), f"{what}, or engine {' or '.join(able)}", "engine's tasks", recipe.task, engine.tasks)
    else:
        what = f"engine {engine.name} does not support {recipe.task}; add engine: {' or '.join(able)}"
        stage.error(("engine",), what, "engine's tasks", engine.name, able)
    return StagePlan(
        name=recipe.name,
        task=recipe.task,
        engine=engine.name,
        depends_on=(),
        resources=lowering.resources(stage),
        container=lowering.container(stage),
        parallel=None,
        gradient_accumulation_steps=None,
        total_steps=None,
        memory=None,
        spec=None,
    )
