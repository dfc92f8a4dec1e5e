"""Evaluations of a run side by side: the scores of each, and answers to the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpclm.core.errors import IncompleteError
from hpclm.core.stage_result import result_of
from hpclm.planning.task import tasks_that
from hpclm.runs.predictions import merged
from hpclm.runs.record import Run

# Of a result beside its scores.
_NUMBERS = ("loss", "perplexity", "answers_at_limit")


@dataclass(frozen=True)
class Example:
    """A row that all evaluations answered: its right answer, and what each said."""

    prompt: str
    answer: str | None
    said: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """`scores`: by stage, then by metric; `examples`: those on which the stages differ most come first."""

    scores: dict[str, dict[str, float]]
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"scores": self.scores, "examples": [vars(one) for one in self.examples]}


def compare(run: Run, examples: int = 3) -> Comparison:
    """The complete evaluations of a run, in its order. Raises IncompleteError where there are none."""
    answering = tasks_that(answers=True)
    names = [stage.name for stage in run.record.stages if stage.task in answering]
    done = [name for name in names if result_of(run.paths.stage(name)) is not None]
    if not done:
        what = "has no evaluate stage" if not names else f"{', '.join(names)} is not complete; see `hpclm status`"
        raise IncompleteError(f"run {run.record.run}: {what}")
    scores = {name: _scores(result_of(run.paths.stage(name)) or {}) for name in done}
    rows = {name: {row["index"]: row for row in merged(run.paths.stage(name))} for name in done}
    return Comparison(scores, tuple(_examples(rows, examples)))


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """Of all tasks of an evaluation; named `task metric` where there are several tasks."""
    tasks: dict[str, dict[str, float]] = result.get("scores") or {}
    found: dict[str, float] = {}
    for task, values in tasks.items():
        for metric, value in values.items():
            found[metric if len(tasks) == 1 else f"{task} {metric}"] = value
    return found | {key: result[key] for key in _NUMBERS if isinstance(result.get(key), int | float)}


def _examples(rows: dict[str, dict[int, dict[str, Any]]], count: int) -> list[Example]:
    """The rows of the same index and answer in every evaluation; first those that are answered differently."""
    first = next(iter(rows.values()))
    shared = [index for index in first if all(_same(one.get(index), first[index]) for one in rows.values())]
    different = sorted(shared, key=lambda index: -len({one[index]["prediction"] for one in rows.values()}))
    return [
        Example(
            first[index]["prompt"],
            first[index].get("answer"),
            {name: one[index]["prediction"] for name, one in rows.items()},
        )
        for index in different[:count]
    ]


def _same(row: dict[str, Any] | None, other: dict[str, Any]) -> bool:
    return row is not None and row.get("answer") == other.get("answer")
