"""What the preflight check of a node found: `<attempt>/preflight/<node>.json`. Standard library only: nodes run it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from hpclm.core.findings import Severity

Fault = Literal["node", "run"]
Result = Literal["ok", "node", "run"]


@dataclass(frozen=True)
class NodeFinding:
    """What was found on a node, and how to fix it.

    Attributes:
        check: what was checked, in one or two words.
        at_fault: `node`: only this node; `run`: it would be the same on every node; None if it does not stop the run.
    """

    severity: Severity
    check: str
    message: str
    at_fault: Fault | None = None


@dataclass(frozen=True)
class PreflightReport:
    """One node's report.

    Attributes:
        result: `node`: this node is faulty, and the run continues without it; `run`: it would be the same everywhere.
        facts: the clock (`unix_time`) and what NVML reported (`gpu`), for people.
        seconds: how long the check took.
    """

    node: str
    result: Result
    findings: list[NodeFinding] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def errors(self) -> str:
        said = [finding.message for finding in self.findings if finding.severity == "error"]
        return "; ".join(said) or "failed the preflight check"


def fault_of(findings: Iterable[NodeFinding]) -> Result:
    """The result, from the errors alone. A problem of every node takes precedence over a problem of this one."""
    faults = {finding.at_fault for finding in findings if finding.severity == "error"}
    return "run" if "run" in faults else "node" if faults else "ok"
