"""How many values each flag of Megatron-LM takes, and of which kind; its argparse refuses others at a job's start.

`known_flags.txt` was read off the parsers of the releases core_v0.12.0 to core_v0.19.0 (add_megatron_arguments). A line
is a flag, its kind (`-` takes no value; `int`, `float` or `text` takes one, with `+` one or more, with `*` any number,
with `?` not the same in all releases), and the values it is limited to, of any release.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hpclm.core.nearest import nearest_name

RELEASES = "core_v0.12 to core_v0.19"
# argparse takes such a word for a value, though it begins like a flag
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
_KINDS = {"int": "a whole number", "float": "a number"}


@dataclass(frozen=True)
class Flag:
    """What a flag takes. `count`: "-", "", "+", "*" or "?"."""

    kind: str
    count: str
    choices: tuple[str, ...]

    def wrong(self, values: Sequence[str]) -> str | None:
        """What is wrong with the values, in words that follow the flag's name."""
        if self.count == "-" and values:
            return f"takes no value, and {values[0]!r} follows it"
        if self.count in ("", "+") and not values:
            return "needs a value"
        if self.count == "" and len(values) > 1:
            return f"takes one value, and {len(values)} follow it: {' '.join(values)}"
        return next(filter(None, map(self._wrong, values)), None)

    def _wrong(self, value: str) -> str | None:
        if self.choices and value not in self.choices:
            near = nearest_name(value, self.choices)
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(self.choices)}"
            return f"does not take {value!r}; {hint}"
        try:
            {"int": int, "float": float}.get(self.kind, str)(value)
        except ValueError:
            return f"takes {_KINDS[self.kind]}, and {value!r} is none"
        return None


@cache
def flags() -> dict[str, Flag]:
    """All flags by name."""
    found = {}
    for line in Path(__file__).with_name("known_flags.txt").read_text().splitlines():
        name, kind, *choices = line.split(" ")
        count = kind if kind == "-" else kind[-1] if kind[-1] in "+*?" else ""
        found[name] = Flag(kind.rstrip("+*?"), count, tuple(choices[0].split(",")) if choices else ())
    return found


def is_flag(word: str) -> bool:
    return word.startswith("-") and not _NEGATIVE.fullmatch(word) and " " not in word


def given(words: Sequence[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Each flag of a command line: its place, its name, and the values that follow it."""
    place = 0
    while place < len(words):
        start, word = place, words[place]
        place += 1
        if not is_flag(word):
            continue
        name, has, value = word.partition("=")
        values = [value] if has else []
        while place < len(words) and not is_flag(words[place]):
            values.append(words[place])
            place += 1
        yield start, name, values


def older_flags() -> list[str]:
    """Those that v2.0 to core_v0.11 had, and no release from core_v0.12 on."""
    return Path(__file__).with_name("older_flags.txt").read_text().split()
