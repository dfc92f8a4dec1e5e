"""hpclm's own engine: GPT on megatron-core, and prompt learning on a frozen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


class Megatron:
    """Pre-training, prompt learning and evaluation with tensor, pipeline, data and sequence parallelism."""

    name = "megatron"
    tasks = ("pretrain", "p-tuning", "prompt-tuning", "evaluate")
    packages = ("torch", "megatron", "numpy", "safetensors", "tokenizers")
    tracer = "hpclm.engines.megatron.ranks.trace"
    own_sections: Mapping[str, tuple[type[Section], str]] = {}

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        from hpclm.engines.megatron.planning import StagePlanner

        planner = StagePlanner(request, self.packages)
        return planner.plan(), planner.base_model


ENGINE = Megatron()
