"""A rank's heartbeat: code that makes progress calls `beat`; the stall watch checks how long ago that was."""

from __future__ import annotations

import time

_last = time.monotonic()
_count = 0


def beat() -> None:
    """Report progress."""
    global _last, _count
    _last = time.monotonic()
    _count += 1


def age_s() -> float:
    """Seconds since the last beat."""
    return time.monotonic() - _last


def count() -> int:
    """Heartbeats so far: of two ranks that are both stuck, the one with fewer is behind."""
    return _count
