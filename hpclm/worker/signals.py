"""Graceful stop: a signal only sets a flag, and the ranks agree on it between two steps.

Slurm sends SIGTERM at a cancel or a time limit, and USR2 some time before the limit (submitit's --signal). A handler
that saved by itself could do so in the middle of another rank's collective.
"""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """`requested` turns True at the first SIGTERM or SIGUSR2, and `number` is the signal's number."""

    def __init__(self) -> None:
        self.requested = False
        self.number: int | None = None

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.number = True, number
