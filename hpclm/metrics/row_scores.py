"""Scores of an evaluation's rows, by task."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from hpclm.metrics.text_scores import plain

_INTENT = re.compile(r"\A\s*Intent:[^\S\n]*(?P<intent>[^\n]*)(?:\n\s*Slots:(?P<slots>[^\n]*))?")
_SLOT = re.compile(r"(?P<name>[^\s,()]+)\((?P<value>[^()]*)\)")


def scores(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """A dictionary a task: `examples`, and where rows have answers `exact_match` and, for answers of the form
    "Intent: X / Slots: slot(value), …", `intent_accuracy` and the micro `slot_f1`. All are means over the rows that
    have answers; `examples_with_answer` says how many where it is not all.
    """
    by_task: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for row in rows:
        by_task[row["taskname"]].append((row["prediction"], row["answer"]))
    return {task: _task_scores(pairs) for task, pairs in sorted(by_task.items())}


def _task_scores(pairs: list[tuple[str, str | None]]) -> dict[str, float | int]:
    known = [(prediction, answer) for prediction, answer in pairs if answer is not None]
    result: dict[str, float | int] = {"examples": len(pairs)}
    if not known:
        return result
    if len(known) < len(pairs):
        result["examples_with_answer"] = len(known)
    result["exact_match"] = sum(plain(prediction) == plain(answer) for prediction, answer in known) / len(known)
    if all(is_intent_answer(answer) for _, answer in known):
        result.update(score_intents(known))
    return result


def is_intent_answer(text: str) -> bool:
    """Whether an answer has the form "Intent: X / Slots: …"."""
    match = _INTENT.match(text)
    return match is not None and match["slots"] is not None


def score_intents(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """`intent_accuracy` and micro `slot_f1` of (prediction, answer) pairs."""
    right = true_positive = predicted = expected = 0
    for prediction, answer in pairs:
        intent, slots = parse_intent(prediction)
        true_intent, true_slots = parse_intent(answer)
        right += intent is not None and intent == true_intent
        true_positive += (slots & true_slots).total()
        predicted += slots.total()
        expected += true_slots.total()
    return {
        "intent_accuracy": right / len(pairs),
        "slot_f1": 2 * true_positive / (predicted + expected) if predicted + expected else 1.0,
    }


def parse_intent(text: str) -> tuple[str | None, Counter[tuple[str, str]]]:
    """The intent and the (slot, value) pairs of an answer; (None, none) where it has another form.

    An answer may break off after its intent; what stands below the line of the slots is not read.
    """
    match = _INTENT.match(text)
    if match is None:
        return None, Counter()
    slots = Counter((found["name"], plain(found["value"])) for found in _SLOT.finditer(match["slots"] or ""))
    return plain(match["intent"]), slots
