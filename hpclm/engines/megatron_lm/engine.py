"""The engine `megatron-lm`: Megatron-LM's own pretrain_gpt.py."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hpclm.core.nearest import either
from hpclm.core.spec import ModelSpec
from hpclm.engines.external import check_sections, program_plan, split
from hpclm.planning import architecture, lowering, rules, vocabulary
from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


_ACTIVATIONS = ("gelu", "gelu_exact", "squared_relu", "swiglu")


class MegatronLm:
    """Pre-training by an external script, with flags made from this recipe."""

    name = "megatron-lm"
    tasks = ("pretrain",)
    packages: tuple[str, ...] = ()

    @cached_property
    def own_sections(self) -> dict[str, tuple[type[Section], str]]:
        from hpclm.engines.megatron_lm.section import Megatron

        return {"megatron": (Megatron, "needed by engine megatron-lm")}

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        stage, recipe = request.stage, request.stage.recipe
        check_sections(stage, "megatron")
        _check(stage)
        topology = split(stage)
        rules.learning_rate(stage, recipe.trainer.max_steps if recipe.trainer else None)
        entries = vocabulary.from_recipe(stage)[1] if recipe.tokenizer is not None else None
        model = architecture.from_keys(stage, entries, recipe.text.seq_length if recipe.text else None)
        if model is not None:
            rules.split_model(stage, model)
            _check_activation(stage, model)
        program = None
        if topology is not None and model is not None and not stage.findings.errors:
            from hpclm.engines.megatron_lm.flags import pretraining

            program = pretraining(stage, lowering.parallel_spec(topology, recipe.parallel.sequence), model)
        return program_plan(request, topology, program), BaseModel()


def _check_activation(stage: StageContext, model: ModelSpec) -> None:
    if model.activation not in _ACTIVATIONS:
        stage.error(
            ("model", "activation"),
            f"{model.activation} has no flag of Megatron-LM; choose {either(_ACTIVATIONS)}, or engine: megatron",
            "Megatron-LM's activations",
            model.activation,
            _ACTIVATIONS,
        )


def _check(stage: StageContext) -> None:
    from hpclm.engines.megatron_lm.section import Megatron

    recipe = stage.recipe
    if recipe.trainer is not None and recipe.trainer.max_steps is None:
        stage.error(("trainer", "max_steps"), "is missing; Megatron-LM counts steps, not epochs", "max_steps")
    own = recipe.own_section("megatron", Megatron)
    flags = set(own.arguments) if own else set()
    written = recipe.tokenizer
    if not any(word.startswith("--tokenizer-type") for word in flags) and (written is None or not written.vocab_file):
        stage.error(
            ("tokenizer",),
            "is missing; give vocab_file and merges_file, or --tokenizer-type and its flags as megatron.arguments",
            "tokenizer",
        )


ENGINE = MegatronLm()
