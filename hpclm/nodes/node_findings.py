"""One thing found out about a node. Standard library only: nodes run this too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
Fault = Literal["node", "run"]


@dataclass(frozen=True)
class Finding:
    """What was found, and how to mend it.

    Attributes:
        check: what was looked at, in a word or two.
        at_fault: `node`: this node alone; `run`: it would be the same on every node; None for what stops nothing.
    """

    severity: Severity
    check: str
    message: str
    at_fault: Fault | None = None


def fault_of(findings: Iterable[Finding]) -> str:
    """`ok`, `node` or `run`, from the errors alone. What every node would meet outweighs what this one has."""
    faults = {finding.at_fault for finding in findings if finding.severity == "error"}
    return "run" if "run" in faults else "node" if faults else "ok"
