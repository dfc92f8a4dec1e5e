"""Trained prompts that a stage starts from or uses: their metadata compared with the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.records import read_record
from hpclm.core.spec import PromptData, TaskTemplate
from hpclm.data.template_text import by_place
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.formats.nemo.prompt_archives import TrainedTask


def check(stage: StageContext, path: str) -> None:
    """The recipe's templates against the prompts at `path`; no findings if these cannot be read here."""
    try:
        counts = _in_archive(path) if is_archive(path) else _trained(Path(path))
    except CheckpointError as error:
        stage.error(("prompts",), str(error), "prompts exist", path)
        return
    written = stage.recipe.task_templates
    if counts is None or not written:
        return
    for index, template in enumerate(written):
        count = counts.get(template.taskname)
        if count is None:
            continue
        if count != template.total_virtual_tokens:
            stage.error(
                ("task_templates", index, "total_virtual_tokens"),
                f"{template.total_virtual_tokens} are not the {count} that {template.taskname} was trained with "
                f"({path}); choose {count}",
                "virtual tokens as trained",
                template.total_virtual_tokens,
                (count,),
            )
    if stage.task.learns_prompts:
        _some_are_new(stage, counts, path)
        return
    missing = [index for index, template in enumerate(written) if template.taskname not in counts]
    for index in missing:
        stage.error(
            ("task_templates", index, "taskname"),
            f"{written[index].taskname} has no prompts in {path}, which was trained on {', '.join(counts)}; choose one "
            "of these, or other prompts",
            "task was trained",
            written[index].taskname,
            list(counts),
        )


def check_new_task(stage: StageContext, parent: StageContext) -> None:
    """Prompt learning that adds to an earlier stage of the recipe has a task that this one has not."""
    if stage.task.learns_prompts and parent.recipe.task_templates:
        counts = {template.taskname: template.total_virtual_tokens for template in parent.recipe.task_templates}
        _some_are_new(stage, counts, f"stage {parent.recipe.name}")


def _some_are_new(stage: StageContext, counts: Mapping[str, int], where: str) -> None:
    written = stage.recipe.task_templates or ()
    if written and all(template.taskname in counts for template in written):
        stage.error(
            ("task_templates",),
            f"all tasks are already trained in {where}, and tasks given by prompts stay frozen; add the new task's "
            "template, or leave prompts out to train all again",
            "prompts adds a new task",
            [template.taskname for template in written],
        )


def trained_counts(path: str) -> dict[str, int]:
    """Virtual tokens by task of the prompts at `path`; empty where these cannot be read."""
    try:
        return (_in_archive(path) if is_archive(path) else _trained(Path(path))) or {}
    except CheckpointError:
        return {}


def language_model(prompts: str | None) -> str | None:
    """The model that an archive of prompts was trained on; None for anything else."""
    if prompts is None or "/" not in prompts or not is_archive(prompts):
        return None
    try:
        return _language_model_of(prompts)
    except CheckpointError:
        return None


def as_trained(path: str, data: PromptData) -> PromptData:
    """Rows as NeMo read them when the prompts at `path` were trained, where `semantics: nemo` leaves it open."""
    earlier = data.semantics == "nemo" and _semantics_of(path) == "nemo-1.21"
    return replace(data, semantics="nemo-1.21") if earlier else data


def _semantics_of(path: str) -> str | None:
    from hpclm.formats.nemo.prompt_archives import semantics_of

    try:
        if is_archive(path):
            return semantics_of(path)
    except CheckpointError:
        return None
    card = read_record(PromptsCard, CheckpointFolder(Path(path)).prompts)
    return card.semantics if card else None


def for_archive(path: str, template: TaskTemplate) -> TaskTemplate:
    """The template as NeMo means it for the archive at `path`: virtual tokens in the order of their places, and the
    task whose table it uses, where that is another's."""
    template = by_place(template)
    try:
        found = _tasks_in(path).get(template.taskname)
    except CheckpointError:
        return template
    if found is None or found.stored_as == template.taskname:
        return template
    return replace(template, stored_as=found.stored_as)


def _tasks_in(path: str) -> dict[str, TrainedTask]:
    from hpclm.formats.nemo.prompt_archives import trained_tasks  # it needs PyYAML, which planning alone does not

    return trained_tasks(path)


def _language_model_of(path: str) -> str | None:
    from hpclm.formats.nemo.prompt_archives import language_model

    return language_model(path)


def _in_archive(path: str) -> dict[str, int]:
    return {task: one.count for task, one in _tasks_in(path).items()}


def _trained(folder: Path) -> dict[str, int] | None:
    """Virtual tokens by task, from prompts.json in a checkpoint or in a stage's checkpoints folder."""
    card = read_record(PromptsCard, CheckpointFolder(folder).prompts)
    return {one.taskname: one.total_virtual_tokens for one in card.task_templates} if card else None
