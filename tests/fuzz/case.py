"""A case: its kind, its number and the seed say everything about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz.kinds import KINDS


@dataclass(frozen=True)
class Case:
    seed: int
    number: int
    kind: str

    def make(self, folder: Path) -> list[str]:
        """Write its files; returns the arguments of its command."""
        return KINDS[self.kind](Random(f"{self.seed}/{self.kind}/{self.number}"), folder)

    @property
    def folder(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"

    @property
    def again(self) -> str:
        return f"python -m tests.fuzz --seed {self.seed} --kind {self.kind} --only {self.number}"


@dataclass
class Failure:
    """What is wrong with a case.

    Attributes:
        what: which rule it breaks: traceback, escape, cpu, hung, memory, signal, exit-code, control, generator.
        cause: the exception's type and the innermost place in hpclm, or how it ended.
        output: its last lines.
    """

    case: Case
    what: str
    cause: str
    arguments: list[str] = field(default_factory=list)
    output: str = ""
    kept: str = ""


@dataclass(frozen=True)
class Good:
    """A case that ended as it should."""

    kind: str
    code: int


def cases(seed: int, number: int, kinds: Sequence[str]) -> list[Case]:
    """`number` of them, the kinds in turn."""
    return [Case(seed, index, kinds[index % len(kinds)]) for index in range(number)]
