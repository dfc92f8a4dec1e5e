"""TensorBoard's event files, by the package tensorboard alone (no torch, no TensorFlow)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpclm.tracking.curve import Curve, numbers

_EVENTS = "events.out.tfevents.*"


class _Events:
    def __init__(self, folder: Path) -> None:
        from tensorboard.summary import Writer

        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard shows all event files of a folder as one curve
        for old in folder.glob(_EVENTS):
            old.unlink(missing_ok=True)
        self.writer = Writer(str(folder))
        self.note = f"tensorboard --logdir {folder}"

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in numbers(row):
            self.writer.add_scalar(name, value, row["step"], wall_time=row["time"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class TensorBoard:
    """A scalar for each number, `train/loss` for one."""

    name = "tensorboard"
    package = "tensorboard"

    def open(self, folder: Path, curve: Curve) -> _Events:
        return _Events(folder)


TRACKER = TensorBoard()
