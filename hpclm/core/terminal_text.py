"""Text that a terminal shows as it is: what could move its cursor, change its colours or its title is written out.

A log, a name or a scheduler's message may contain anything. Everything the command line prints passes through here.
"""

from __future__ import annotations

import re

# Control characters but tab and newline; marks that reverse the direction of text; halves of a surrogate pair.
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[{_CONTROLS}{_DIRECTIONS}\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with each such character as `\\u001b`, which JSON reads as the character that it was."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
