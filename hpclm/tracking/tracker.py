"""The interface of a tracker.

To add one: an object with these attributes and methods, and an entry `name = "module:OBJECT"` in the group
`hpclm.trackers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hpclm.core.registries import TRACKERS
from hpclm.tracking.curve import Curve


class Sink(Protocol):
    """Takes the rows of one curve, from its first on."""

    @property
    def note(self) -> str:
        """How a user sees the curve: an address or a command. No secrets."""

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of the metrics: `kind`, `step`, `time` and numbers (`curve.numbers`)."""

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

    def open(self, folder: Path, curve: Curve) -> Sink:
        """The curve, begun anew: an older one of the same run and stage is removed or replaced.

        `folder` is this tracker's alone. Raises ImportError, and what its package raises: the caller tries again later.
        """


def tracker_named(name: str) -> Tracker:
    """The tracker of that name. Raises UnknownNameError."""
    return TRACKERS.get(name)
