"""Sections a task needs, sections it would ignore, and what must not be written down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hpclm.core.spec import PROMPT_TASKS
from hpclm.planning.findings import Findings
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.loading import LoadedRecipe

_COMMON = frozenset({"model", "tokenizer", "parallel", "resources", "container", "trainer"})
_TRAINING = _COMMON | {"batch", "optim", "checkpoint"}
_USED: dict[str, frozenset[str]] = {
    "pretrain": _TRAINING | {"text"},
    "p-tuning": _TRAINING | {"data", "task_templates", "prompt", "generation"},
    "prompt-tuning": _TRAINING | {"data", "task_templates", "generation"},
    "evaluate": _COMMON | {"data", "task_templates", "generation"},
    "program": frozenset({"parallel", "resources", "container", "program"}),
}
_BY_ENGINE: dict[str, frozenset[str]] = {
    "hpclm": frozenset(),
    "command": frozenset(),
    "nemo": frozenset({"nemo"}),
    "megatron-lm": frozenset({"megatron"}),
}
_SECTIONS = frozenset().union(*_USED.values(), *_BY_ENGINE.values())
_EXAMPLES = {"batch": "global and micro", "trainer": "max_steps or max_epochs", "optim": "lr"}
_SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|CREDENTIAL", re.IGNORECASE)


def check(stage: StageContext) -> None:
    """Everything the task needs is there, and nothing it ignores is written in the stage itself."""
    recipe = stage.recipe
    training = recipe.task != "evaluate"
    if training:
        for section in ("batch", "trainer", "optim"):
            if getattr(recipe, section) is None:
                example = {"batch": "global, micro", "trainer": "max_steps or max_epochs", "optim": "lr"}[section]
                stage.error(
                    (section,), f"is missing, and {recipe.task} needs it; add it with {example}", "needed section"
                )
    if (
        training
        and recipe.trainer is not None
        and recipe.trainer.max_steps is None
        and recipe.trainer.max_epochs is None
    ):
        stage.error(("trainer",), "says no length; add max_steps or max_epochs", "max_steps or max_epochs")
    if recipe.task == "pretrain" and recipe.text is None:
        _needed(stage, ("text",), "paths")
    if recipe.task in PROMPT_TASKS:
        _check_prompt_learning(stage)
    if recipe.prompts is not None and recipe.task not in (*PROMPT_TASKS, "evaluate"):
        stage.error(("prompts",), f"{recipe.task} has no prompts; leave it out", "prompts is for prompt learning")
    if recipe.task == "evaluate" and recipe.trainer is None and recipe.resources.device == "gpu":
        stage.info(("trainer", "precision"), "is not given; the model answers in fp32", "precision", "fp32")
    _check_environment(stage)


def _needed(stage: StageContext, keys: tuple[str, ...], content: str) -> None:
    stage.error(keys, f"is missing, and {stage.recipe.task} needs it; add it with {content}", "needed section")


def _check_prompt_learning(stage: StageContext) -> None:
    recipe = stage.recipe
    if recipe.data is None or not recipe.data.train:
        _needed(stage, ("data", "train"), "JSONL files")
    elif not recipe.data.validation:
        _check_needs_validation(stage)
        stage.warning(
            ("data", "validation"),
            "is missing; without val_loss the last checkpoint counts as the best",
            "validation rows",
        )
    if not recipe.task_templates:
        _needed(stage, ("task_templates",), "one template a task")


def _check_needs_validation(stage: StageContext) -> None:
    trainer = stage.recipe.trainer
    for key in ("early_stopping", "val_metrics"):
        if trainer is not None and getattr(trainer, key):
            stage.error(
                ("trainer", key), "looks at validation rows; add data.validation, or leave it out", "validation rows"
            )


def _check_environment(stage: StageContext) -> None:
    container = stage.recipe.container
    for name in container.environment if container else ():
        if _SECRET.search(name):
            stage.warning(
                ("container", "environment", name),
                "looks like a secret, and a recipe is copied into every run; set it in the site profile's environment",
                "no secrets in recipes",
            )


def _used(stage: StageContext) -> frozenset[str]:
    """Sections that the stage's task and engine read."""
    return _USED[stage.recipe.task] | _BY_ENGINE[stage.recipe.engine]


def check_unused(loaded: LoadedRecipe, stages: Sequence[StageContext], findings: Findings) -> None:
    """Warn of sections that nothing reads: a stage's own, or a shared one that no stage uses."""
    tasks = {stage.recipe.task for stage in stages}
    used_by_any = frozenset().union(*(_used(stage) for stage in stages))
    shared = {section for section, _ in loaded.sections}
    for section, where in loaded.sections:
        if section not in used_by_any:
            findings.warning(
                where, f"is not used by {' or '.join(sorted(tasks))}; leave it out", "unused section", section
            )
    if len(stages) == 1 and shared:
        return
    for stage in stages:
        for section in sorted((stage.loaded.own & _SECTIONS) - _used(stage)):
            stage.warning((section,), f"is not used by {stage.recipe.task}; leave it out", "unused section", section)
