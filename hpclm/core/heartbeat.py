"""A rank's sign of progress: whatever gets on with the work says so here; `watch` looks how long ago that was."""

from __future__ import annotations

import time

_last = time.monotonic()
_count = 0


def beat() -> None:
    """Some work got done."""
    global _last, _count
    _last = time.monotonic()
    _count += 1


def age_s() -> float:
    """Seconds since the last beat."""
    return time.monotonic() - _last


def count() -> int:
    """Beats so far: of two ranks that both stand still, the one with fewer is behind."""
    return _count
