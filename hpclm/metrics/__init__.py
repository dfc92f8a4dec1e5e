"""Scores of predictions against answers. Standard library only: login node and ranks use it alike."""

from hpclm.metrics.row_scores import scores
from hpclm.metrics.text_scores import METRICS, validation_metrics

__all__ = ["METRICS", "scores", "validation_metrics"]
