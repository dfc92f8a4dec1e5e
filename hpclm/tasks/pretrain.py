"""Training a whole model on text."""

from __future__ import annotations

from hpclm.planning import rules
from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import TRAINING_NEEDS, TRAINING_SECTIONS, Task


def _check(stage: StageContext) -> None:
    """One source of text."""
    recipe = stage.recipe
    if recipe.text is None and recipe.indexed is None and stage.recipe.engine == "megatron":
        stage.needs(("text",), "paths (or add indexed, with the prefixes of tokenised data)")
    if recipe.text is not None and recipe.indexed is not None:
        stage.error(("indexed",), "and text are both given; keep one", "text or indexed")
    rules.validated_by_loss(stage)


TASK = Task(
    name="pretrain",
    sections=TRAINING_SECTIONS | {"text", "indexed"},
    needs=TRAINING_NEEDS,
    trains=True,
    starts_models=True,
    check=_check,
)
