"""The engine `hf`: models of Hugging Face's transformers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


class HuggingFaceEngine:
    """Fine-tuning and evaluation of any causal language model that transformers loads."""

    name = "hf"
    tasks = ("prepare-rows", "fine-tune", "evaluate")
    tracer = "hpclm.engines.hf.ranks.hf_trace"
    packages = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers")

    @cached_property
    def own_sections(self) -> dict[str, tuple[type[Section], str]]:
        from hpclm.engines.hf.section import FineTune, Harness, HuggingFace, Instructions, Sharding

        return {
            "instructions": (Instructions, "engine hf: rows of instructions and answers"),
            "fine_tune": (FineTune, "task fine-tune: the method"),
            "sharding": (Sharding, "engine hf: how training is divided over the ranks"),
            "harness": (Harness, "engine hf, task evaluate: tasks of lm-evaluation-harness"),
            "huggingface": (HuggingFace, "engine hf: how transformers runs the model"),
        }

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        from hpclm.engines.hf.planning import HfPlanner

        planner = HfPlanner(request, self.packages)
        return planner.plan(), planner.base_model


ENGINE = HuggingFaceEngine()
