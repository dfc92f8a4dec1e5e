"""Answering test rows with a model, alone or with trained prompts, and scoring the answers."""

from __future__ import annotations

from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import COMMON_SECTIONS, Task


def check(stage: StageContext) -> None:
    """A note on the precision if the recipe sets none."""
    if stage.recipe.trainer is None and stage.recipe.resources.device == "gpu":
        stage.info(("trainer", "precision"), "is not set; the model runs in fp32", "precision", "fp32")


TASK = Task(
    name="evaluate",
    sections=COMMON_SECTIONS | {"data", "task_templates", "generation"},
    answers=True,
    takes_prompts=True,
    roles=("test",),
    compared_by="exact_match",
    check=check,
)
