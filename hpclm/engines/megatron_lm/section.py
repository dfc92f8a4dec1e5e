"""The recipe's section `megatron`."""

from __future__ import annotations

from pydantic import Field

from hpclm.recipe.schema.base import Line, Section
from hpclm.recipe.schema.container_section import InsidePath


class Megatron(Section):
    """Megatron-LM's pretrain_gpt.py, with flags made from this recipe."""

    script: InsidePath = Field(default="/opt/megatron-lm/pretrain_gpt.py", description="in the image")
    data_path: tuple[Line, ...] = Field(
        default=(),
        description="prefixes of .bin/.idx pairs in the image, each preceded by its weight if there are several; "
        "paths of this machine belong to indexed.paths",
    )
    split: Line = Field(default="98,2,0", description="shares of training, validation and test data")
    arguments: tuple[Line, ...] = Field(default=(), description="further flags, one word per entry")
