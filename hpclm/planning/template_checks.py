"""Task templates: what NeMo asserts of them (gpt_prompt_learning_dataset.py, load_data), as findings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from hpclm.core.nearest import either
from hpclm.core.records import taken
from hpclm.core.spec import TaskTemplate
from hpclm.data.template_text import BROKEN_FIELD, MARKER, fields
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.schema.data_sections import TaskTemplate as Written


def resolve(
    stage: StageContext,
    written: Sequence[Written],
    max_seq_length: int | None,
    frozen: Collection[str] = (),
    *,
    as_nemo: bool = False,
) -> tuple[TaskTemplate, ...]:
    """Every template checked, defaults resolved.

    Args:
        stage: the one that has them.
        frozen: tasks that are trained already.
        as_nemo: whether rows are read as NeMo does (`data.semantics`), which takes templates that make little sense.
    """
    found: list[TaskTemplate] = []
    for index, template in enumerate(written):
        first = next((other for other in found if other.taskname.lower() == template.taskname.lower()), None)
        if first is not None:
            stage.error(
                ("task_templates", index, "taskname"),
                f"{template.taskname} has a template already; give each task one, under its own name",
                "one template a task",
                template.taskname,
            )
        splits = _splits(stage, index, template)
        _check_fields(stage, index, template, as_nemo=as_nemo)
        if max_seq_length is not None and template.total_virtual_tokens >= max_seq_length:
            stage.error(
                ("task_templates", index, "total_virtual_tokens"),
                f"{template.total_virtual_tokens} virtual tokens leave no room in data.max_seq_length "
                f"{max_seq_length}; choose less than {max_seq_length}",
                "total_virtual_tokens < max_seq_length",
                template.total_virtual_tokens,
                (max_seq_length - 1,),
            )
        _check_init(stage, index, template)
        found.append(taken(TaskTemplate, template, virtual_token_splits=list(splits)))
    _check_shared_count(stage, found, frozen)
    return tuple(found)


def _splits(stage: StageContext, index: int, template: Written) -> tuple[int, ...]:
    """Splits add up to the total, and the template has one marker for each, numbered from 0."""
    markers = [int(number) for number in MARKER.findall(template.prompt_template)]
    splits = template.virtual_token_splits
    if splits is None:
        splits = (template.total_virtual_tokens,)
        if len(markers) > 1:
            stage.error(
                ("task_templates", index, "virtual_token_splits"),
                f"is missing, and the template has {len(markers)} markers; set how many of the "
                f"{template.total_virtual_tokens} virtual tokens belong to each",
                "virtual_token_splits",
            )
            return splits
    if sum(splits) != template.total_virtual_tokens:
        stage.error(
            ("task_templates", index, "virtual_token_splits"),
            f"{list(splits)} add up to {sum(splits)}, not to total_virtual_tokens {template.total_virtual_tokens}; "
            "change one of them",
            "sum(virtual_token_splits) == total_virtual_tokens",
            sum(splits),
            (template.total_virtual_tokens,),
        )
    wanted = [f"<|VIRTUAL_PROMPT_{number}|>" for number in range(len(splits))]
    if sorted(markers) != list(range(len(splits))):
        has = " ".join(f"<|VIRTUAL_PROMPT_{number}|>" for number in markers[:20]) or "none"
        stage.error(
            ("task_templates", index, "prompt_template"),
            f"needs the marker{'s' if len(wanted) > 1 else ''} {' '.join(wanted[:20])}, once each, and has {has}; "
            "write one marker for each entry of virtual_token_splits",
            "one <|VIRTUAL_PROMPT_i|> a split",
            len(markers),
            (len(splits),),
        )
    return splits


def _check_fields(stage: StageContext, index: int, template: Written, *, as_nemo: bool) -> None:
    names = fields(template.prompt_template)
    answer, cut = template.answer_field, template.truncate_field
    keys = ("task_templates", index)
    broken = BROKEN_FIELD.search(template.prompt_template)
    if broken is not None:
        what = f"{broken[0][:40]!r} is not a field; write the name of a row's key between the braces, on one line"
        stage.error((*keys, "prompt_template"), what, "template has fields")
        return
    if not names:
        stage.error(
            (*keys, "prompt_template"),
            "has no {field}, so every row would give the same prompt; write the row's fields in braces",
            "template has fields",
        )
        return
    odd = [name for name in names if not name.strip() or "{" in name or not name.isprintable()]
    if odd:
        stage.error(
            (*keys, "prompt_template"),
            f"{{{odd[0][:40]!r}}} is not a field; write the name of a row's key between the braces",
            "template has fields",
        )
    if cut is not None and cut not in names and not as_nemo:
        stage.error(
            (*keys, "truncate_field"),
            f"{cut!r} is not a field of the template; choose {either([*(n for n in names if n != answer), 'null'])}",
            "truncate_field in the template",
            cut,
            [name for name in names if name != answer],
        )
    if as_nemo and not template.answer_only_loss:
        return
    if answer is not None and cut == answer:
        stage.error(
            (*keys, "truncate_field"),
            f"{cut!r} is the answer, which must not be truncated; choose another field, or null",
            "truncate_field != answer_field",
            cut,
            [name for name in names if name != answer],
        )
    if answer is not None and MARKER.search(template.prompt_template.partition(f"{{{answer}}}")[2]):
        stage.error(
            (*keys, "prompt_template"),
            f"has a virtual token marker after {{{answer}}}, where nothing is generated; move it to the front",
            "virtual tokens stand before the answer",
        )
    if stage.task.learns_prompts:
        _check_answer(stage, index, template, names)


def _check_answer(stage: StageContext, index: int, template: Written, names: list[str]) -> None:
    answer = template.answer_field
    keys = ("task_templates", index)
    if not template.answer_only_loss:
        return
    if answer is None:
        stage.error(
            (*keys, "answer_field"),
            "answer_only_loss needs to know the answer; name the field, or set answer_only_loss: false",
            "answer_only_loss needs answer_field",
        )
    elif answer not in names:
        stage.error(
            (*keys, "answer_field"),
            f"{answer!r} is not a field of the template; end the template with {{{answer}}}, or choose {either(names)}",
            "answer_field in the template",
            answer,
            names,
        )
    elif not template.prompt_template.endswith(f"{{{answer}}}") or template.prompt_template.count(f"{{{answer}}}") > 1:
        stage.error(
            (*keys, "prompt_template"),
            f"with answer_only_loss {{{answer}}} must occur once, and last; move it to the end, with nothing after it",
            "answer last in the template",
        )


def _check_init(stage: StageContext, index: int, template: Written) -> None:
    keys = ("task_templates", index)
    if template.prompt_init == "text" and template.prompt_init_text is None:
        stage.error(
            (*keys, "prompt_init_text"),
            "is missing; write the text that the virtual tokens start from, or prompt_init: random",
            "prompt_init text needs prompt_init_text",
        )
    if stage.task.encodes_prompts and template.prompt_init == "text":
        stage.error(
            (*keys, "prompt_init"),
            "p-tuning starts from its encoder, not from text; choose random, or task: prompt-tuning",
            "prompt_init text is for prompt-tuning",
            "text",
            ("random",),
        )


def _check_shared_count(stage: StageContext, templates: list[TaskTemplate], frozen: Collection[str]) -> None:
    """The p-tuning encoder gives every task that it trains the same number of virtual tokens (NeMo asserts it)."""
    trained = [(i, one.total_virtual_tokens) for i, one in enumerate(templates) if one.taskname not in frozen]
    counts = [count for _, count in trained]
    if stage.task.encodes_prompts and len(set(counts)) > 1:
        odd, count = next((i, count) for i, count in trained if count != counts[0])
        stage.error(
            ("task_templates", odd, "total_virtual_tokens"),
            f"tasks that are p-tuned together need the same number of virtual tokens, not {counts}; "
            f"choose {counts[0]} for all",
            "p-tuning tasks share total_virtual_tokens",
            count,
            (counts[0],),
        )
