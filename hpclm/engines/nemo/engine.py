"""The engine `nemo`: NeMo 1.x's own prompt-learning scripts."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import ProgramSpec, PromptData, TaskTemplate
from hpclm.engines.external import check_sections, program_plan, rows_and_templates, split
from hpclm.planning import lowering, parallel_rules, rules
from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


class Nemo:
    """p-tuning, prompt-tuning and evaluation by megatron_gpt_prompt_learning.py and its evaluation."""

    name = "nemo"
    tasks = ("p-tuning", "prompt-tuning", "evaluate")
    packages: tuple[str, ...] = ()

    @cached_property
    def own_sections(self) -> dict[str, tuple[type[Section], str]]:
        from hpclm.engines.nemo.section import Nemo as NemoSection

        return {"nemo": (NemoSection, "needed by engine nemo")}

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        stage, recipe = request.stage, request.stage.recipe
        check_sections(stage, "nemo")
        if stage.task.learns_prompts:
            _check_training(request)
        else:
            _check_evaluation(request)
        parallel_rules.only_plain(stage, who="engine nemo")
        topology, _ = split(stage)
        if recipe.trainer is not None and recipe.trainer.deterministic:
            stage.error(("trainer", "deterministic"), "NeMo's scripts have no switch for it; leave it out", "nemo")
        if recipe.trainer is not None and recipe.trainer.train_samples is not None:
            what = "is not known to NeMo's scripts; give max_steps or max_epochs"
            stage.error(("trainer", "train_samples"), what, "nemo's length")
        rules.training_length(stage, topology)
        data, templates = rows_and_templates(request)
        rules.learning_rate(stage, recipe.trainer.max_steps if recipe.trainer else None)
        program = None
        if topology is not None and data is not None and not stage.findings.errors:
            program = _program(request, lowering.parallel_spec(topology, recipe.parallel), data, templates)
        named = recipe.prompts
        parents = (named,) if named is not None and named in request.earlier else ()
        return program_plan(request, topology, program, data, parents), BaseModel()


def _check_training(request: StageRequest) -> None:
    stage, recipe = request.stage, request.stage.recipe
    for part in ("train", "validation"):
        if recipe.data is None or not getattr(recipe.data, part):
            stage.error(("data", part), "is missing, and NeMo needs it; add JSONL files", "needed section")
    if not recipe.task_templates:
        stage.error(("task_templates",), "is missing; add one template a task", "needed section")
    if recipe.optim is not None and recipe.optim.schedule.name != "cosine":
        stage.error(("optim", "schedule", "name"), "is always cosine in NeMo's recipes; leave it out", "cosine")


def _check_evaluation(request: StageRequest) -> None:
    from hpclm.engines.nemo.section import Nemo as NemoSection

    stage, recipe = request.stage, request.stage.recipe
    own = recipe.own_section("nemo", NemoSection)
    if recipe.prompts is not None and "/" in recipe.prompts:
        stage.error(
            ("prompts",), "is only for hpclm's checkpoints; give the .nemo file as nemo.prompts", "nemo.prompts"
        )
    elif recipe.prompts is not None:
        found = request.earlier.get(recipe.prompts)
        fits = found is not None and found.context.recipe.engine == Nemo.name and found.context.task.learns_prompts
        if not fits:
            stage.error(
                ("prompts",), f"{recipe.prompts} is not an earlier prompt-learning stage of engine nemo", "prompts"
            )
    elif own is not None and own.prompts is None:
        stage.error(("prompts",), "is missing; give an earlier stage, or a file as nemo.prompts", "prompts")
    world = recipe.resources.nodes * recipe.resources.devices_per_node
    model_size = recipe.parallel.tensor * recipe.parallel.pipeline
    if world != model_size:
        stage.error(
            ("resources", "devices_per_node"),
            f"NeMo evaluates without data parallelism: {world} devices are not tensor {recipe.parallel.tensor} × "
            f"pipeline {recipe.parallel.pipeline}; choose {model_size} in all",
            "devices == tensor · pipeline",
            world,
        )


def _program(
    request: StageRequest, split: ParallelSpec, data: PromptData, templates: tuple[TaskTemplate, ...]
) -> ProgramSpec:
    from hpclm.engines.nemo import config

    if request.stage.task.learns_prompts:
        return config.tuning(request.stage, split, data, templates)
    return config.evaluation(request.stage, split, data)


ENGINE = Nemo()
