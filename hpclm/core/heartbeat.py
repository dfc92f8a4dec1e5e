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


class Beside:
    """Counts the beats of a thread that works beside the training. `waits`: it does so for other ranks."""

    def __init__(self) -> None:
        self.count = 0
        self.waits = False


def beat() -> None:
    """Report progress; that of a thread beside the training is its own (see `count_beside`)."""
    global _last, _count
    beside: Beside | None = getattr(_own, "beside", None)
    if beside is not None:
        beside.count += 1
        return
    _last = time.monotonic()
    _count += 1


def count_beside(beside: Beside) -> None:
    """Let beats of this thread count there and nowhere else: a training that is stuck beside it must be seen."""
    _own.beside = beside


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
