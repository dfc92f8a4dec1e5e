"""The rows of a recipe as its model will see them: lengths, what is truncated or left out, and a few examples.

Uses the ranks' own code for templates and tokens, which does not need torch.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hpclm.core.errors import PlanError
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.spec import StageSpec
from hpclm.data.examples import PromptDataset, rows_to_answer
from hpclm.data.instructions.instruction_check import InstructionCheck
from hpclm.data.templates import Example
from hpclm.data.tokenizers import Tokenizer, load_tokenizer
from hpclm.planning.plan import Plan
from hpclm.planning.specs import is_in_run
from hpclm.planning.task import Role, task_named


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


def check_rows(plan: Plan, stage: str | None, examples: int) -> list[RowCheck | InstructionCheck]:
    """Every file of rows that the plan's stages read. Raises PlanError where there are none, DataError for bad rows."""
    found: list[RowCheck | InstructionCheck] = []
    specs = [one.spec for one in plan.stages if isinstance(one.spec, StageSpec | FineTuneStageSpec) and one.spec.data]
    for spec in specs:
        if stage not in (None, spec.stage):
            continue
        if isinstance(spec, FineTuneStageSpec):
            found += _instructions(plan, spec, examples)
            continue
        tokenizer = _tokenizer(spec)
        for role in task_named(spec.task).roles:
            if getattr(spec.data, role):
                found.append(_check(spec, role, tokenizer, examples))
    if not found:
        names = ", ".join(spec.stage for spec in specs)
        raise PlanError(f"no stage {stage!r} with rows; stages with rows: {names or 'none'}")
    return found


def _instructions(plan: Plan, spec: FineTuneStageSpec, examples: int) -> list[InstructionCheck]:
    """Raises PlanError where this machine has no transformers."""
    for package in ("numpy", "transformers"):
        if find_spec(package) is None:
            mend = "install hpclm[hf], or check them in the stage's image"
            raise PlanError(f"stage {spec.stage}: its rows need {package}, which this machine lacks; {mend}")
    from hpclm.data.ranks.instruction_report import check_instructions

    return check_instructions(spec, _model_folder(plan, spec), examples)


def _model_folder(plan: Plan, spec: FineTuneStageSpec) -> Path:
    """Of the model whose tokenizer a stage has: its own, or that of the stage it builds on."""
    by_name = {one.name: one for one in plan.stages}
    while is_in_run(spec.base):
        earlier = by_name[by_name[spec.stage].depends_on[0]].spec
        assert isinstance(earlier, FineTuneStageSpec)
        spec = earlier
    return Path(spec.base)


def _tokenizer(spec: StageSpec) -> Tokenizer:
    if spec.tokenizer.kind == "base" and (spec.base is None or is_in_run(spec.base)):
        raise PlanError(
            f"stage {spec.stage}: its tokenizer is trained by another stage and does not exist yet; rows can be "
            "checked with an existing tokenizer: tokenizer.tokenizer_file, or vocab_file with merges_file"
        )
    return load_tokenizer(spec.tokenizer, Path(spec.base) if spec.base and not is_in_run(spec.base) else None)


def _check(spec: StageSpec, role: Role, tokenizer: Tokenizer, examples: int) -> RowCheck:
    data = spec.data
    assert data is not None
    files: list[str] = getattr(data, role)
    if role == "test":
        dataset = rows_to_answer(spec, spec.templates, tokenizer)
    else:
        dataset = PromptDataset(files, spec.templates, tokenizer, data, training=True)
    lengths = sorted(len(example.tokens) for example in dataset.examples)
    return RowCheck(
        stage=spec.stage,
        role=role,
        files=files,
        rows=len(dataset) + dataset.skipped,
        truncated=dataset.truncated,
        left_out=dataset.left_out,
        limit=dataset.limit,
        lengths={
            "shortest": lengths[0],
            "median": int(statistics.median(lengths)),
            "p95": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
            "longest": lengths[-1],
        },
        shown=[marked(example, tokenizer) for example in dataset.examples[:examples]],
    )


def marked(example: Example, tokenizer: Tokenizer) -> str:
    """An example's text, virtual tokens as ⟨v0⟩ … ⟨v9⟩ and what is trained on between ⟦ and ⟧."""
    parts: list[str] = []
    ids: list[int] = []
    learning = False

    def flush() -> None:
        parts.append(tokenizer.shown(ids))
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
