"""The rows of a recipe as its model will see them: lengths, what is cut or left out, and a few examples.

Uses the ranks' own reading of templates and tokens, which needs no torch.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpclm.core.errors import PlanError
from hpclm.core.spec import PROMPT_TASKS, PromptData, TaskTemplate
from hpclm.data.examples import PromptDataset
from hpclm.data.templates import Example
from hpclm.data.tokenizers import Tokenizer, load_tokenizer
from hpclm.planning.plan import Plan, StagePlan


@dataclass(frozen=True)
class RowCheck:
    """One stage's rows of one role (train, validation, test).

    Attributes:
        lengths: tokens of the shortest, the median, the 95th percentile and the longest example.
        virtual: virtual tokens at the beginning of each of `shown`, which are texts with the tokens marked.
    """

    stage: str
    role: str
    files: list[str]
    rows: int
    truncated: int
    left_out: list[int]
    limit: int
    lengths: dict[str, int]
    shown: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check_rows(plan: Plan, stage: str | None, examples: int) -> list[RowCheck]:
    """Every file of rows that the plan's stages read. Raises PlanError where there are none, DataError for bad rows."""
    found = []
    for one in plan.stages:
        if one.work is None or one.work.data is None or stage not in (None, one.name):
            continue
        roles = ("train", "validation") if one.task in PROMPT_TASKS else ("test",)
        tokenizer = _tokenizer(one)
        for role in roles:
            if getattr(one.work.data, role):
                found.append(_check(one, role, tokenizer, examples))
    if not found:
        names = ", ".join(one.name for one in plan.stages if one.work and one.work.data)
        raise PlanError(f"no stage {stage!r} with rows; {names or 'no stage'} has some")
    return found


def _tokenizer(stage: StagePlan) -> Tokenizer:
    assert stage.work is not None
    base = stage.work.base
    if stage.work.tokenizer.kind == "base" and (base is None or base.path is None):
        raise PlanError(
            f"stage {stage.name}: its tokenizer is learnt by another stage, and there is none yet; rows can be checked "
            "with a tokenizer that exists: tokenizer.tokenizer_file, or vocab_file with merges_file"
        )
    return load_tokenizer(stage.work.tokenizer, Path(base.path) if base and base.path else None)


def _check(stage: StagePlan, role: str, tokenizer: Tokenizer, examples: int) -> RowCheck:
    assert stage.work is not None
    data: PromptData = stage.work.data  # type: ignore[assignment]
    files: list[str] = getattr(data, role)
    templates: list[TaskTemplate] = list(stage.work.templates)
    dataset = PromptDataset(files, templates, tokenizer, data, training=role != "test")
    lengths = sorted(len(example.tokens) for example in dataset.examples)
    return RowCheck(
        stage=stage.name,
        role=role,
        files=files,
        rows=len(dataset) + dataset.skipped,
        truncated=dataset.truncated,
        left_out=dataset.left_out,
        limit=data.max_seq_length,
        lengths={
            "shortest": lengths[0],
            "median": int(statistics.median(lengths)),
            "p95": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
            "longest": lengths[-1],
        },
        shown=[marked(example, tokenizer) for example in dataset.examples[:examples]],
    )


def marked(example: Example, tokenizer: Tokenizer) -> str:
    """An example's text, virtual tokens as ⟨v0⟩ … ⟨v9⟩ and what is learnt between ⟦ and ⟧."""
    parts: list[str] = []
    ids: list[int] = []
    learning = False

    def flush() -> None:
        parts.append(tokenizer.backend.decode(ids, skip_special_tokens=False))
        ids.clear()

    for token, number, weight in zip(example.tokens, example.virtual, example.loss_mask, strict=True):
        if bool(weight) != learning:
            flush()
            parts.append("⟧" if learning else "⟦")
            learning = not learning
        if number >= 0:
            flush()
            parts.append(f"⟨v{number}⟩")
        else:
            ids.append(token)
    flush()
    return "".join(parts) + ("⟧" if learning else "")
