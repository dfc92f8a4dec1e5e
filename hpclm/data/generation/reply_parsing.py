"""Rows out of a model's reply, which may be anything.

###
4. Instruction: …
4. Input:
…
4. Output:
…
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

from hpclm.data.generation.instruction_rows import InstructionRow

# At a line's start, with the marks that chat models put around headings, and the words of a Chinese reply.
_LABEL = re.compile(
    r"[ \t]{0,8}#{0,6}[ \t]{0,4}\*{0,3}(?P<number>\d{1,6})[.、][ \t]{0,4}\*{0,3}"
    r"(?P<word>instruction|input|output|指令|输入|输出)\*{0,3}[ \t]{0,4}[:：]\*{0,3}",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[ \t]*#{3,}[ \t]*")
# Other servers than OpenAI's have more words: for an end ("eos", "end_turn"), and for being cut off.
_CUT_OFF = ("length", "content_filter", "max_tokens", "abort", "error")
_NO_INPUT = re.compile(r"<?\s*no\s?input\s*>?|<\s*(无输入|无)\s*>|无输入", re.IGNORECASE)


class _Field(IntEnum):
    INSTRUCTION = 0
    INPUT = 1
    OUTPUT = 2


_FIELDS = {
    "instruction": _Field.INSTRUCTION,
    "input": _Field.INPUT,
    "output": _Field.OUTPUT,
    "指令": _Field.INSTRUCTION,
    "输入": _Field.INPUT,
    "输出": _Field.OUTPUT,
}


@dataclass
class Parsed:
    """The rows of a reply. `malformed`: rows that lack a part; `truncated`: whether its last row was cut off."""

    rows: list[InstructionRow] = field(default_factory=list)
    malformed: int = 0
    truncated: bool = False


def parse_reply(text: str, finish_reason: str | None) -> Parsed:
    """The rows in a reply. Where its `finish_reason` says that it was cut off, a last row that no separator ends is
    left out: its end is missing. A reply without any row counts as one malformed row."""
    text = text.replace("\r\n", "\n")
    if text.lstrip().startswith("<think>"):
        text = text.rpartition("</think>")[2]
    reader = _Reader()
    for line in text.split("\n"):
        reader.take(line)
    if finish_reason in _CUT_OFF and reader.current is not None:
        reader.parsed.truncated = True
    else:
        reader.finish()
    parsed = reader.parsed
    if not parsed.rows and not parsed.malformed and not parsed.truncated:
        parsed.malformed = 1
    return parsed


class _Reader:
    """Takes lines one by one. A label counts only where it can stand: a number in an answer is no new row."""

    def __init__(self) -> None:
        self.parsed = Parsed()
        self.current: int | None = None
        self.at = _Field.INSTRUCTION
        self.texts: dict[_Field, list[str]] = {}

    def take(self, line: str) -> None:
        label = _LABEL.match(line)
        if label is not None and self._enter(int(label["number"]), _FIELDS[label["word"].lower()]):
            self.texts[self.at] = [line[label.end() :]]
        elif self.current is None:
            return
        elif _SEPARATOR.fullmatch(line):
            self.finish()
        else:
            self.texts[self.at].append(line)

    def _enter(self, number: int, part: _Field) -> bool:
        """Whether this label begins a part of a row here."""
        if part is _Field.INSTRUCTION:
            if self.current is not None and number <= self.current:
                return False
            self.finish()
            self.current, self.texts = number, {}
        elif number != self.current or part <= self.at:
            return False
        self.at = part
        return True

    def finish(self) -> None:
        """The end of a row."""
        if self.current is None:
            return
        self.current = None
        instruction, given, output = ("\n".join(self.texts.get(part, ())).strip() for part in _Field)
        if not instruction or not output:
            self.parsed.malformed += 1
            return
        self.parsed.rows.append(InstructionRow(instruction, "" if _NO_INPUT.fullmatch(given) else given, output))
