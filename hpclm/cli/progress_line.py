"""One line of progress: written over on a terminal, and a line every half minute elsewhere."""

from __future__ import annotations

import sys
from typing import Any


class ProgressLine:
    """Writes to standard error. `active`: whether anything is shown."""

    def __init__(self, *, active: bool) -> None:
        self.active, self.over = active, sys.stderr.isatty()
        self.next_s = 0.0 if self.over else 30.0
        self.open = False

    def is_due(self, seconds: float) -> bool:
        """Whether a line is to be shown, so many seconds after the start."""
        return self.active and seconds >= self.next_s

    def show(self, line: str, seconds: float) -> None:
        self.next_s = seconds + (0.5 if self.over else 30.0)
        # a terminal's line is written over by the next one
        raw: Any = getattr(sys.stderr, "raw", sys.stderr)
        raw.write(f"\r\x1b[K{line}" if self.over else f"{line}\n")
        raw.flush()
        self.open = self.over

    def end(self) -> None:
        if self.open:
            raw: Any = getattr(sys.stderr, "raw", sys.stderr)
            raw.write("\n")
            raw.flush()
            self.open = False


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
