"""Fine-tuning a model on rows of instructions: every weight, or an adapter beside the frozen ones."""

from __future__ import annotations

from hpclm.planning.task import TRAINING_NEEDS, TRAINING_SECTIONS, Task

TASK = Task(
    name="fine-tune",
    sections=TRAINING_SECTIONS,
    needs=TRAINING_NEEDS,
    trains=True,
)
