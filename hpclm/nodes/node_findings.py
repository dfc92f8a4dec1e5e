"""One finding about a node. Standard library only: nodes run this too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hpclm.core.findings import Severity

Fault = Literal["node", "run"]


@dataclass(frozen=True)
class NodeFinding:
    """What was found, and how to fix it.

    Attributes:
        check: what was checked, in one or two words.
        at_fault: `node`: only this node; `run`: it would be the same on every node; None if it does not stop the run.
    """

    severity: Severity
    check: str
    message: str
    at_fault: Fault | None = None


def fault_of(findings: Iterable[NodeFinding]) -> str:
    """`ok`, `node` or `run`, from the errors alone. A problem of every node takes
    precedence over a problem of this one."""
    faults = {finding.at_fault for finding in findings if finding.severity == "error"}
    return "run" if "run" in faults else "node" if faults else "ok"
