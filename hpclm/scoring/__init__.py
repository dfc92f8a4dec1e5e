"""Scores of predictions against answers. Standard library only: login node and ranks use it alike."""

from hpclm.scoring.rows import scores
from hpclm.scoring.text import METRICS, validation_metrics

__all__ = ["METRICS", "scores", "validation_metrics"]
