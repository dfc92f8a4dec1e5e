"""Stages that run a program of the user's: what is checked before the queue, and what becomes of them."""

from __future__ import annotations

import re

from hpclm.core.spec import ProgramSpec
from hpclm.planning import lowering, rules
from hpclm.planning.plan import StagePlan
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology


def is_program(stage: StageContext) -> bool:
    """Whether any of the keys that only such a stage has is written."""
    recipe = stage.recipe
    return recipe.task == "program" or recipe.engine == "command" or recipe.program is not None


def plan(stage: StageContext, names: list[str]) -> StagePlan:
    """The plan of a program's stage; a finding for whatever does not go together."""
    recipe = stage.recipe
    if recipe.task != "program":
        stage.error(("task",), f"{recipe.task} is done by hpclm itself; with engine: command write program", "task")
    if recipe.engine != "command":
        stage.error(("engine",), "is not command, which the task program needs; add engine: command", "engine")
    if recipe.program is None:
        stage.error(("program",), "is missing; add it with argv, the program and its arguments", "needed section")
    for key in ("base", "prompts"):
        if getattr(recipe, key) is not None:
            stage.error((key,), "is for hpclm's own tasks; name earlier stages in `after`", "program's keys")
    before = names[: names.index(recipe.name)]
    for name in recipe.after:
        if name not in before:
            hint = f"choose {' or '.join(before)}" if before else "put that stage before this one"
            stage.error(("after",), f"{name} is no earlier stage; {hint}", "after is an earlier stage", name, before)
    _check_progress(stage)
    return stage_plan(stage, rules.split_devices(stage), lowering.program(stage), recipe.after)


def stage_plan(
    stage: StageContext, topology: Topology | None, wanted: ProgramSpec | None, parents: tuple[str, ...]
) -> StagePlan:
    """The plan of a stage that runs `wanted` (None where a finding kept it from being made)."""
    recipe = stage.recipe
    return StagePlan(
        name=recipe.name,
        task="program",
        depends_on=tuple(dict.fromkeys(parents)),
        resources=lowering.resources(stage),
        container=lowering.container(stage),
        parallel=lowering.parallel_spec(topology, recipe.parallel.sequence) if topology else None,
        gradient_accumulation_steps=None,
        total_steps=None,
        memory=None,
        work=None,
        recovery=lowering.recovery(stage),
        program=wanted,
    )


def _check_progress(stage: StageContext) -> None:
    """The pattern is one, and has a group for what status is to show."""
    pattern = stage.recipe.program.progress if stage.recipe.program else None
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        stage.error(("program", "progress"), f"is no regular expression: {error}", "progress is a pattern")
        return
    if not {"step", "loss"} & set(groups):
        stage.error(
            ("program", "progress"),
            "has no group; write (?P<step>…) or (?P<loss>…) round a number",
            "its groups",
        )
