"""Answers of the form "Intent: X / Slots: slot(value), …": parsed and scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hpclm.metrics.text_scores import plain

_INTENT = re.compile(r"\A\s*Intent:[^\S\n]*(?P<intent>[^\n]*)(?:\n\s*Slots:(?P<slots>[^\n]*))?")
_SLOT = re.compile(r"(?P<name>[^\s,()]+)\((?P<value>[^()]*)\)")


def is_intent_answer(text: str) -> bool:
    """Whether an answer has the form "Intent: X / Slots: …"."""
    match = _INTENT.match(text)
    return match is not None and match["slots"] is not None


def are_intents(answers: Sequence[str]) -> bool:
    """Whether all answers have that form."""
    return all(is_intent_answer(answer) for answer in answers)


def intent_accuracy(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """The share of right intents."""
    pairs = [
        (parse_intent(made)[0], parse_intent(wanted)[0]) for made, wanted in zip(predictions, answers, strict=True)
    ]
    return sum(made is not None and made == wanted for made, wanted in pairs) / len(pairs)


def slot_f1(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Micro F1 of the (slot, value) pairs; 1 where neither side has any."""
    true_positive = predicted = expected = 0
    for prediction, answer in zip(predictions, answers, strict=True):
        slots, wanted = parse_intent(prediction)[1], parse_intent(answer)[1]
        true_positive += (slots & wanted).total()
        predicted += slots.total()
        expected += wanted.total()
    return 2 * true_positive / (predicted + expected) if predicted + expected else 1.0


def parse_intent(text: str) -> tuple[str | None, Counter[tuple[str, str]]]:
    """The intent and the (slot, value) pairs of an answer; (None, none) where it has another form.

    An answer may end after its intent; lines after the slots are ignored.
    """
    match = _INTENT.match(text)
    if match is None:
        return None, Counter()
    slots = Counter((found["name"], plain(found["value"])) for found in _SLOT.finditer(match["slots"] or ""))
    return plain(match["intent"]), slots
