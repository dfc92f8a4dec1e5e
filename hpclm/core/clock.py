"""Times as people read them. Standard library only."""

from __future__ import annotations

import time


def clock(form: str, at: float) -> str:
    """A time of this machine's zone; `?` for one that no calendar has."""
    try:
        return time.strftime(form, time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "?"
