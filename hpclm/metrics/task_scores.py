"""A prediction file against a truth file, task by task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hpclm.metrics.row_scores import is_intent_answer, score_intents
from hpclm.metrics.text_scores import exact_match, plain, token_f1

KINDS = ("squad", "classification", "intent-slot")


def score(kind: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """Scores of a task's kind.

    Args:
        references: the right answers of each prediction, one at least.
    """
    if kind == "squad":
        return squad(predictions, references)
    firsts = [one[0] for one in references]
    return classification(predictions, firsts) if kind == "classification" else intents(predictions, firsts)


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """Exact match and F1 as evaluate-v1.1.py has them: the best over a question's answers, the mean over questions."""
    count = len(predictions)
    pairs = list(zip(predictions, references, strict=True))
    return {
        "examples": count,
        "exact_match": sum(max(exact_match(made, one) for one in wanted) for made, wanted in pairs) / count,
        "f1": sum(max(token_f1(made, one) for one in wanted) for made, wanted in pairs) / count,
    }


def classification(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float | int]:
    """Accuracy and macro F1: the mean F1 over the labels that are an answer. What is no label is only wrong."""
    made, wanted = [plain(text).lower() for text in predictions], [plain(text).lower() for text in answers]
    right = Counter(label for label, other in zip(wanted, made, strict=True) if label == other)
    there, said = Counter(wanted), Counter(made)
    f1 = [2 * right[label] / (there[label] + said[label]) for label in there]
    return {"examples": len(wanted), "accuracy": right.total() / len(wanted), "macro_f1": sum(f1) / len(f1)}


def intents(predictions: Sequence[str], answers: Sequence[str]) -> dict[str, float | int]:
    """Exact match of the intent, and micro F1 of (slot, value) pairs."""
    pairs = list(zip(map(unfolded, predictions), answers, strict=True))
    same = sum(plain(made) == plain(wanted) for made, wanted in pairs)
    return {"examples": len(pairs), "exact_match": same / len(pairs), **score_intents(pairs)}


def unfolded(prediction: str) -> str:
    """A prediction of one line, as a prediction file has it, in the answers' two; split off at "Intent:" or not."""
    if "\n" in prediction.strip():
        return prediction
    start = "" if prediction.lstrip().startswith("Intent:") else "Intent: "
    return start + re.sub(r"\s+Slots:", "\nSlots:", prediction.strip(), count=1)


def kind_of(references: Sequence[Sequence[str]]) -> str:
    """What the answers look like: intents and slots, a few labels, or texts."""
    firsts = [one[0] for one in references]
    if all(is_intent_answer(answer) for answer in firsts):
        return "intent-slot"
    labels = {plain(answer).lower() for answer in firsts}
    few = len(labels) <= max(2, len(firsts) // 4) and all(len(label.split()) <= 4 for label in labels)
    return "classification" if few and all(len(one) == 1 for one in references) else "squad"
