"""Sections a task needs, and sections nothing reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpclm.core.findings import Findings
from hpclm.core.registries import ENGINES, TASKS
from hpclm.planning.engine_protocol import engine_named
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.loading import LoadedRecipe


def check(stage: StageContext) -> None:
    """Everything the task needs is given, and nothing it does not support."""
    recipe, task = stage.recipe, stage.task
    for section, example in task.needs.items():
        if getattr(recipe, section) is None:
            stage.needs((section,), example)
    trainer = recipe.trainer
    if task.trains and trainer is not None and not (trainer.max_steps or trainer.max_epochs or trainer.train_samples):
        stage.error(("trainer",), "sets no training length; add max_steps, max_epochs or train_samples", "a length")
    task.check(stage)
    if recipe.prompts is not None and not task.takes_prompts:
        stage.error(("prompts",), f"{task.name} has no prompts; leave it out", "prompts is for prompt learning")


# Of a job rather than of a task: read for every stage.
_OF_JOBS = frozenset({"recovery", "resources", "container"})


def _used(stage: StageContext) -> frozenset[str]:
    """Sections that the stage's task and engine read."""
    return (
        _OF_JOBS
        | stage.task.sections
        | set(engine_named(stage.recipe.engine).own_sections)
        | set(stage.task.own_sections)
    )


def check_unused(loaded: LoadedRecipe, stages: Sequence[StageContext], findings: Findings) -> None:
    """Warn about sections that nothing reads: a stage's own, or a shared one that no stage uses."""
    tasks = {stage.recipe.task for stage in stages}
    used_by_any = frozenset().union(*(_used(stage) for stage in stages))
    shared = {section for section, _ in loaded.sections}
    for section, where in loaded.sections:
        if section not in used_by_any:
            findings.warning(
                where, f"is not used by {' or '.join(sorted(tasks))}; leave it out", "unused section", section
            )
    if len(stages) == 1 and shared:
        return
    known = frozenset().union(
        *(task.sections | set(task.own_sections) for _, task in TASKS.items()),
        *(engine.own_sections for _, engine in ENGINES.items()),
    )
    for stage in stages:
        for section in sorted((stage.loaded.own & known) - _used(stage)):
            stage.warning((section,), f"is not used by {stage.recipe.task}; leave it out", "unused section", section)
