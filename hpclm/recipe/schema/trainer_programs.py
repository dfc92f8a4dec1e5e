"""Other people's trainers, as they lie in an image."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpclm.recipe.schema.base import Line, Section
from hpclm.recipe.schema.container_section import InsidePath


class Nemo(Section):
    """NeMo 1.x (23.02): its own prompt-learning scripts, with the configuration this recipe means."""

    folder: InsidePath = Field(default="/workspace/nemo", description="where NeMo's sources lie in the image")
    model: InsidePath = Field(description="the base model's .nemo file, as seen inside")
    prompts: InsidePath | None = Field(
        default=None, description="evaluate: a .nemo file of trained prompts, where no stage of this recipe makes them"
    )


class Megatron(Section):
    """Megatron-LM's pretrain_gpt.py, with the flags this recipe means."""

    script: InsidePath = Field(default="/opt/megatron-lm/pretrain_gpt.py", description="in the image")
    data_path: Annotated[tuple[Line, ...], Field(min_length=1)] = Field(
        description="prefixes of indexed .bin/.idx pairs, each with its weight before it where there are several"
    )
    split: Line = Field(default="98,2,0", description="shares of training, validation and test data")
    arguments: tuple[Line, ...] = Field(default=(), description="further flags, each word by itself")
