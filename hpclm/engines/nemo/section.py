"""The recipe's section `nemo`."""

from __future__ import annotations

from pydantic import Field

from hpclm.recipe.schema.base import Section
from hpclm.recipe.schema.container_section import InsidePath


class Nemo(Section):
    """NeMo 1.x (23.02): its own prompt-learning scripts, with a configuration made from this recipe."""

    folder: InsidePath = Field(default="/workspace/nemo", description="folder of NeMo's sources in the image")
    model: InsidePath = Field(description="the base model's .nemo file, path in the image")
    prompts: InsidePath | None = Field(
        default=None, description="evaluate: a .nemo file of trained prompts, where no stage of this recipe makes them"
    )
