"""A rank's heartbeat: code that makes progress calls `beat`; the stall watch checks how long ago that was."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

_last = time.monotonic()
_count = 0
_waits = 0
_own = threading.local()


def beat() -> None:
    """Report progress; from a thread that works beside the training it is none."""
    global _last, _count
    if getattr(_own, "silent", False):
        return
    _last = time.monotonic()
    _count += 1


def silence() -> None:
    """Let beats of this thread count for nothing: a training that is stuck beside it must be seen."""
    _own.silent = True


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Where a rank waits for its device, and so for the other ranks, which its Python stack does not show."""
    global _waits
    _waits += 1
    try:
        yield
    finally:
        _waits -= 1


def is_waiting() -> bool:
    """Whether the rank is in a `waiting` block."""
    return _waits > 0


def age_s() -> float:
    """Seconds since the last beat."""
    return time.monotonic() - _last


def count() -> int:
    """Heartbeats so far: of two ranks that are both stuck, the one with fewer is behind."""
    return _count
