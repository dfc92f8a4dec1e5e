"""The interface of a tracker.

To add one: an object with these attributes and methods, and an entry `name = "module:OBJECT"` in the group
`hpclm.trackers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hpclm.core.registries import TRACKERS


class Sink(Protocol):
    """Takes the rows of one curve, from its first on."""

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl: `kind`, `step`, `time` and numbers."""

    def flush(self) -> None:
        """What was added can be seen now."""

    def close(self) -> None: ...


@runtime_checkable
class Tracker(Protocol):
    """Where metrics go. `package`: what it needs."""

    @property
    def name(self) -> str: ...
    @property
    def package(self) -> str: ...

    def open(self, folder: Path) -> Sink:
        """A new curve in `folder`, which is this tracker's alone: an older one is removed. Raises ImportError."""


def tracker_named(name: str) -> Tracker:
    """The tracker of that name. Raises UnknownNameError."""
    return TRACKERS.get(name)
