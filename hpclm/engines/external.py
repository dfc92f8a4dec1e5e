"""Stages that NeMo or Megatron-LM carries out: what they need, and what those cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpclm.core.spec import PROMPT_TASKS, ModelSpec, ParallelSpec, ProgramSpec, PromptData, TaskTemplate
from hpclm.engines.megatron_lm import flags
from hpclm.engines.nemo import config
from hpclm.planning import architecture, vocabulary
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.planning.base_model import Earlier

_TASKS = {"nemo": (*PROMPT_TASKS, "evaluate"), "megatron-lm": ("pretrain",)}


def check(stage: StageContext, earlier: Mapping[str, Earlier]) -> None:
    """Everything the trainer needs is there, and nothing is asked of it that it does not do."""
    recipe = stage.recipe
    tasks = _TASKS[recipe.engine]
    if recipe.task not in tasks:
        stage.error(("task",), f"{recipe.engine} does no {recipe.task}; choose {' or '.join(tasks)}", "engine's tasks")
        return
    training = recipe.task != "evaluate"
    for section in ("batch", "trainer", "optim") if training else ():
        if getattr(recipe, section) is None:
            stage.error((section,), f"is missing, and {recipe.task} needs it; add it", "needed section")
    section = "nemo" if recipe.engine == "nemo" else "megatron"
    if getattr(recipe, section) is None:
        stage.error((section,), f"is missing, and engine: {recipe.engine} needs it; add it", "needed section")
    if recipe.base is not None:
        stage.error(("base",), f"{recipe.engine} cannot read hpclm's checkpoints; name its own model", "engine's model")
    (_check_nemo if recipe.engine == "nemo" else _check_megatron)(stage, earlier)


def _check_nemo(stage: StageContext, earlier: Mapping[str, Earlier]) -> None:
    recipe = stage.recipe
    if recipe.task in PROMPT_TASKS:
        for part in ("train", "validation"):
            if recipe.data is None or not getattr(recipe.data, part):
                stage.error(("data", part), "is missing, and NeMo needs it; add JSONL files", "needed section")
        if not recipe.task_templates:
            stage.error(("task_templates",), "is missing; add one template a task", "needed section")
        if recipe.optim is not None and recipe.optim.schedule.name != "cosine":
            stage.error(("optim", "schedule", "name"), "is always cosine in NeMo's recipes; leave it out", "cosine")
        return
    if recipe.prompts is not None and "/" in recipe.prompts:
        stage.error(("prompts",), "is for hpclm's checkpoints; give the .nemo file as nemo.prompts", "nemo.prompts")
    elif recipe.prompts is not None:
        found = earlier.get(recipe.prompts)
        if found is None or found.context.recipe.engine != "nemo" or found.context.recipe.task not in PROMPT_TASKS:
            stage.error(("prompts",), f"{recipe.prompts} is no earlier prompt-learning stage of engine nemo", "prompts")
    elif recipe.nemo is not None and recipe.nemo.prompts is None:
        stage.error(("prompts",), "is missing; name an earlier stage, or a file as nemo.prompts", "prompts")
    world = recipe.resources.nodes * recipe.resources.devices_per_node
    if world != recipe.parallel.tensor * recipe.parallel.pipeline:
        stage.error(
            ("resources", "devices_per_node"),
            f"NeMo evaluates without data parallelism: {world} devices are not tensor {recipe.parallel.tensor} × "
            f"pipeline {recipe.parallel.pipeline}; choose {recipe.parallel.tensor * recipe.parallel.pipeline} in all",
            "devices == tensor · pipeline",
            world,
        )


def _check_megatron(stage: StageContext, earlier: Mapping[str, Earlier]) -> None:
    recipe = stage.recipe
    if recipe.trainer is not None and recipe.trainer.max_steps is None:
        stage.error(("trainer", "max_steps"), "is missing; Megatron-LM counts steps, not epochs", "max_steps")
    own = set(recipe.megatron.arguments) if recipe.megatron else set()
    written = recipe.tokenizer
    if not any(word.startswith("--tokenizer-type") for word in own) and (written is None or not written.vocab_file):
        stage.error(
            ("tokenizer",),
            "is missing; give vocab_file and merges_file, or --tokenizer-type and its flags as megatron.arguments",
            "tokenizer",
        )


def architecture_of(stage: StageContext) -> ModelSpec | None:
    """The architecture written in the recipe, every default resolved; findings for what is missing."""
    entries = vocabulary.from_recipe(stage)[1] if stage.recipe.tokenizer is not None else None
    length = stage.recipe.text.seq_length if stage.recipe.text else None
    return architecture.from_keys(stage, entries, length)


def parents(stage: StageContext) -> tuple[str, ...]:
    """Stages that must be complete first."""
    named = stage.recipe.prompts
    return (*stage.recipe.after, *((named,) if named and "/" not in named else ()))


def program(
    stage: StageContext,
    split: ParallelSpec | None,
    data: PromptData | None,
    templates: tuple[TaskTemplate, ...],
    model: ModelSpec | None,
) -> ProgramSpec | None:
    """The program of a stage without findings."""
    recipe = stage.recipe
    if split is None:
        return None
    if recipe.engine == "megatron-lm":
        return flags.pretraining(stage, split, model) if model is not None else None
    if data is None:
        return None
    if recipe.task != "evaluate":
        return config.tuning(stage, split, data, templates)
    assert recipe.nemo is not None
    made = f"{config.RUN_DIR}/stages/{recipe.prompts}/{config.PROMPTS}"
    return config.evaluation(stage, split, data, recipe.nemo.prompts or made)
