"""The engine `megatron-lm`: Megatron-LM's own pretrain_gpt.py."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from hpclm.engines.external import check_sections, program_plan, split
from hpclm.planning import architecture, indexed_checks, lowering, rules, vocabulary
from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


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
        from hpclm.engines.megatron_lm import arguments, flag_rules, flag_values, support
        from hpclm.engines.megatron_lm.flags import TENSORBOARD
        from hpclm.engines.megatron_lm.section import Megatron

        stage, recipe = request.stage, request.stage.recipe
        check_sections(stage, "megatron")
        support.check(stage)
        support.check_schedule(stage)
        own = recipe.own_section("megatron", Megatron)
        given = arguments.read(stage, own.arguments if own else ())
        topology, accumulation = split(stage)
        flag_rules.check(stage, given, own.arguments if own else (), topology)
        rules.training_length(stage, topology)
        rules.learning_rate(stage, lowering.max_steps(stage))
        entries = vocabulary.from_recipe(stage)[1] if recipe.tokenizer is not None else None
        support.check_vocabulary(stage, entries)
        indexed = indexed_checks.resolve(stage, request.earlier, request.names)
        model = architecture.from_keys(stage, entries, recipe.indexed.seq_length if recipe.indexed else None)
        if model is not None:
            laid_out = arguments.LAYOUT in given.places
            support.check_model(stage, model, indexed, accumulation, laid_out=laid_out)
            arguments.check_layout(given, model)
        flag_values.check(given, model)
        program = held = None
        if topology is not None and model is not None and not stage.findings.errors:
            from hpclm.engines.megatron_lm.estimated import estimate
            from hpclm.engines.megatron_lm.flags import pretraining

            parallel = lowering.parallel_spec(topology, recipe.parallel)
            held = estimate(stage, given, parallel, model, indexed, accumulation)
            program = pretraining(stage, parallel, model, indexed)
        parents = indexed_checks.parents(stage)
        plan = program_plan(request, topology, program, parents=parents, tracks=(TENSORBOARD,))
        return replace(plan, memory=held), BaseModel()


ENGINE = MegatronLm()
