"""A prediction file against a truth file: which metrics suit the answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpclm.metrics.intents import are_intents
from hpclm.metrics.metric import References, score_by
from hpclm.metrics.text_scores import plain

# Kinds of tasks, and the metrics that are usual for each.
KINDS: dict[str, tuple[str, ...]] = {
    "squad": ("squad_exact_match", "squad_f1"),
    "classification": ("label_accuracy", "label_macro_f1"),
    "intent-slot": ("exact_match", "intent_accuracy", "slot_f1"),
}


def score(
    kind: str, predictions: Sequence[str], references: References, asked: Sequence[str] = ()
) -> dict[str, float | int]:
    """Scores of a task of this kind. `asked`: metrics instead of the usual ones."""
    made = [unfolded(text) for text in predictions] if kind == "intent-slot" else predictions
    return {"examples": len(made), **score_by(asked or KINDS[kind], made, references)}


def unfolded(prediction: str) -> str:
    """A prediction of one line, as a prediction file has it, in the answers' two; split off at "Intent:" or not."""
    if "\n" in prediction.strip():
        return prediction
    start = "" if prediction.lstrip().startswith("Intent:") else "Intent: "
    return start + re.sub(r"\s+Slots:", "\nSlots:", prediction.strip(), count=1)


def kind_of(references: References) -> str:
    """What the answers look like: intents and slots, a few labels, or texts."""
    firsts = [one[0] for one in references]
    if are_intents(firsts):
        return "intent-slot"
    labels = {plain(answer).lower() for answer in firsts}
    few = len(labels) <= max(2, len(firsts) // 4) and all(len(label.split()) <= 4 for label in labels)
    return "classification" if few and all(len(one) == 1 for one in references) else "squad"
