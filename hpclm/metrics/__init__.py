"""One registry of metrics: name, function, direction. Standard library only: login node and ranks use it alike."""

from hpclm.metrics.metric import Metric, larger_is_better, metric, score_by
from hpclm.metrics.row_scores import scores

__all__ = ["Metric", "larger_is_better", "metric", "score_by", "scores"]
