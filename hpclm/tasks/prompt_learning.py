"""Prompt learning: virtual tokens trained for a frozen model, directly (prompt-tuning) or by an encoder (p-tuning)."""

from __future__ import annotations

from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import TRAINING_NEEDS, TRAINING_SECTIONS, Role, Task

_SECTIONS = TRAINING_SECTIONS | {"data", "task_templates", "generation"}
_ROLES: tuple[Role, ...] = ("train", "validation")


def check(stage: StageContext) -> None:
    """Training rows and a template; validation rows if something needs them."""
    recipe = stage.recipe
    if recipe.data is None or not recipe.data.train:
        stage.needs(("data", "train"), "JSONL files")
    elif not recipe.data.validation:
        _check_needs_validation(stage)
        stage.warning(
            ("data", "validation"),
            "is missing; without val_loss the last checkpoint counts as the best",
            "validation rows",
        )
    if not recipe.task_templates:
        stage.needs(("task_templates",), "one template a task")


def _check_needs_validation(stage: StageContext) -> None:
    trainer = stage.recipe.trainer
    for key in ("early_stopping", "val_metrics"):
        if trainer is not None and getattr(trainer, key):
            stage.error(
                ("trainer", key), "needs validation rows; add data.validation, or leave it out", "validation rows"
            )


P_TUNING = Task(
    name="p-tuning",
    sections=_SECTIONS | {"prompt"},
    needs=TRAINING_NEEDS,
    trains=True,
    learns_prompts=True,
    encodes_prompts=True,
    takes_prompts=True,
    roles=_ROLES,
    check=check,
)
PROMPT_TUNING = Task(
    name="prompt-tuning",
    sections=_SECTIONS,
    needs=TRAINING_NEEDS,
    trains=True,
    learns_prompts=True,
    takes_prompts=True,
    roles=_ROLES,
    check=check,
)
