"""The interface of a metric, and the only lookup: used by validation, evaluation, sweeps and `evaluate score`.

To add one: an object of `Metric`, and an entry `name = "module:OBJECT"` in the group `hpclm.metrics`. It can then be
named in `trainer.val_metrics`, by `evaluate score --metric` and by `--metric` of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpclm.core.registries import METRICS

References = Sequence[Sequence[str]]
# What training reports besides the metrics: smaller is better.
_LOSSES = ("val_loss", "best_val_loss", "loss", "perplexity")


def _any_answers(references: References) -> bool:
    return True


@dataclass(frozen=True)
class Metric:
    """A score of predictions against answers.

    Attributes:
        score: from n predictions and their n ≥ 1 lists of right answers (at least one each) to a number.
        summary: what it is, in one sentence, with its source.
        always: whether an evaluation always reports it if it `applies`.
        applies: whether answers have the form that it needs.
    """

    name: str
    score: Callable[[Sequence[str], References], float]
    summary: str
    larger_is_better: bool = True
    always: bool = False
    applies: Callable[[References], bool] = _any_answers


def metric(name: str) -> Metric:
    """The metric of that name. Raises UnknownNameError."""
    return METRICS.get(name)


def larger_is_better(name: str) -> bool:
    """Which direction is better for a metric, a loss, or any other number in a result."""
    if name in _LOSSES or name.endswith("_loss"):
        return False
    return metric(name).larger_is_better if name in METRICS else True


def score_by(names: Sequence[str], predictions: Sequence[str], references: References) -> dict[str, float]:
    """The requested metrics, by name; empty where there is nothing to score."""
    if not references:
        return {}
    chosen = {METRICS.canonical(name): metric(name) for name in names}
    return {name: one.score(predictions, references) for name, one in chosen.items() if one.applies(references)}


def always_reported(references: References) -> list[str]:
    """Names of the metrics that an evaluation of such answers reports."""
    return [name for name, one in METRICS.items() if one.always and one.applies(references)]
