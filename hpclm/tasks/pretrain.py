"""Training a whole model on text."""

from __future__ import annotations

from hpclm.planning.task import TRAINING_NEEDS, TRAINING_SECTIONS, Task

TASK = Task(
    name="pretrain",
    sections=TRAINING_SECTIONS | {"text"},
    needs=TRAINING_NEEDS | {"text": "paths"},
    trains=True,
    starts_models=True,
)
