"""Standard output and error of the command line: whatever writes to them, a terminal gets only plain text."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from hpclm.core.secrets import masked
from hpclm.core.terminal_text import printable


class PlainStream:
    """A text stream that writes out control characters, and masks tokens and passwords.

    `raw`: the stream itself, for what is meant for a terminal.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        self.raw.write(self._encodable(printable(masked(text))))
        return len(text)

    def _encodable(self, text: str) -> str:
        """In a locale without Unicode, other characters are written out as well."""
        encoding = self.raw.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.encode(encoding, "backslashreplace").decode(encoding)
        return text

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @property
    def encoding(self) -> str:
        return self.raw.encoding or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # whoever wants bytes gets past everything above
            raise AttributeError(name)
        return getattr(self.raw, name)


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Standard output and error are plain until the end of the block."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = PlainStream(out), PlainStream(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def raw_output() -> TextIO:
    """Standard output for what is meant for a terminal."""
    return getattr(sys.stdout, "raw", sys.stdout)
