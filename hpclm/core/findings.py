"""Findings of the checks, and the collector that lets a plan report all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One finding for the user.

    Attributes:
        severity: an `error` keeps the run from being submitted.
        where: `file:line key.path`, or the command-line argument.
        message: what is wrong; how to fix it.
        rule: the rule's stable name.
        value: what was found; None where there is no single value.
        choices: the nearest values that would pass.
    """

    severity: Severity
    where: str
    message: str
    rule: str
    value: object = None
    choices: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass
class Findings:
    """Collects findings in the order of the checks, each once."""

    items: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.items if finding.severity == "error"]

    def add(self, *findings: Finding) -> None:
        self.extend(findings)

    def extend(self, findings: Iterable[Finding]) -> None:
        self.items.extend(finding for finding in findings if finding not in self.items)

    def error(self, where: str, message: str, rule: str, value: object = None, choices: Iterable[object] = ()) -> None:
        self.add(Finding("error", where, message, rule, value, tuple(choices)))

    def warning(
        self, where: str, message: str, rule: str, value: object = None, choices: Iterable[object] = ()
    ) -> None:
        self.add(Finding("warning", where, message, rule, value, tuple(choices)))

    def info(self, where: str, message: str, rule: str, value: object = None) -> None:
        self.add(Finding("info", where, message, rule, value))
