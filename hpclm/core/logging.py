"""A rank's log: lines on standard error, which its log file takes."""

from __future__ import annotations

import sys


def log(message: str) -> None:
    """A line for the log of this rank."""
    print(message, file=sys.stderr, flush=True)
