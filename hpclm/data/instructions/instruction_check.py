"""What `data check` finds in rows of instructions: plain values, made where transformers is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FileCheck:
    """A file's rows. `tokens`, `learned`, `longest`, `ended` are of the rows that are kept.

    Attributes:
        kept: rows that are trained on, or asked.
        cut: rows that lose their end; of an evaluation, prompts that lose their beginning.
        too_long: rows that are left out for their length; `without_label`: for want of a token to learn.
        joined: rows with a token of both prompt and answer.
        ended: rows that learn the end token, or what the chat template ends answers with.
        examples: places of rows that are left out.
    """

    path: str
    rows: int = 0
    kept: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    cut: int = 0
    too_long: int = 0
    without_label: int = 0
    joined: int = 0
    ended: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ShownRow:
    """A row as the model sees it: special tokens as they are, what is learned between ⟦ and ⟧."""

    where: str
    text: str
    tokens: int
    learned: int
    note: str = ""


@dataclass(frozen=True)
class InstructionCheck:
    """One stage's rows of one role (train, validation, test).

    Attributes:
        limit: max_seq_length.
        end, padding: the tokenizer's tokens.
        samples: that packing makes of the role's rows; None without packing.
    """

    stage: str
    role: str
    template: str
    learn: str
    limit: int
    end: str
    padding: str | None
    files: list[FileCheck]
    samples: int | None
    shown: list[ShownRow]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
