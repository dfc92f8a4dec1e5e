"""Scores of an evaluation's rows, by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from hpclm.metrics.metric import always_reported, score_by


def scores(rows: Iterable[dict[str, Any]], asked: Iterable[str] = ()) -> dict[str, dict[str, float | int]]:
    """One dictionary per task: `examples`, and where rows have answers every metric that is always reported and the
    requested ones. All are taken over the rows that have answers; `examples_with_answer`
    is their number where it is not all.
    """
    by_task: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for row in rows:
        by_task[row["taskname"]].append((row["prediction"], row["answer"]))
    return {task: _task_scores(pairs, tuple(asked)) for task, pairs in sorted(by_task.items())}


def _task_scores(pairs: list[tuple[str, str | None]], asked: tuple[str, ...]) -> dict[str, float | int]:
    known = [(prediction, [answer]) for prediction, answer in pairs if answer is not None]
    result: dict[str, float | int] = {"examples": len(pairs)}
    if not known:
        return result
    if len(known) < len(pairs):
        result["examples_with_answer"] = len(known)
    references = [answers for _, answers in known]
    names = [*always_reported(references), *asked]
    return result | score_by(names, [prediction for prediction, _ in known], references)
