"""The recipe's section `megatron`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpclm.recipe.schema.base import Line, Section
from hpclm.recipe.schema.container_section import InsidePath


class Megatron(Section):
    """Megatron-LM's pretrain_gpt.py, with flags made from this recipe."""

    script: InsidePath = Field(default="/opt/megatron-lm/pretrain_gpt.py", description="in the image")
    data_path: Annotated[tuple[Line, ...], Field(min_length=1)] = Field(
        description="prefixes of indexed .bin/.idx pairs, each preceded by its weight if there are several"
    )
    split: Line = Field(default="98,2,0", description="shares of training, validation and test data")
    arguments: tuple[Line, ...] = Field(default=(), description="further flags, one word per entry")
