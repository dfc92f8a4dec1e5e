"""The bad-node list: which nodes were found faulty, in a file beside the runs that every job adds to.

`<runs_dir>/nodes.jsonl`: one object a line, {"at", "node", "site", "run", "stage", "reason"}; `{"at", "node",
"forget": true}` takes back what was said before it. A node is avoided for a day: by then somebody has mended it, or
it is found at fault again.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.files import append_line, read_lines
from hpclm.core.sweep_layout import RunsFolder

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
AVOIDED_S = 24 * 3600.0


@dataclass(frozen=True)
class Fault:
    """A node at fault, as a run found it. `at` is unix seconds."""

    at: float
    node: str
    site: str
    run: str
    stage: str
    reason: str


def faults(folder: Path) -> list[Fault]:
    """What is known, oldest first, without what was forgotten on purpose."""
    found: list[Fault] = []
    for line in read_lines(RunsFolder(folder).bad_nodes):
        node, at = line.get("node"), line.get("at")
        # A name from here goes to sbatch: nothing but a node's name may.
        if not isinstance(node, str) or not _NODE.fullmatch(node) or not isinstance(at, (int, float)):
            continue
        if line.get("forget"):
            found = [fault for fault in found if fault.node != node]
        else:
            words = {key: str(line.get(key, "")) for key in ("site", "run", "stage", "reason")}
            found.append(Fault(float(at), node, **words))
    return found


def suspects(folder: Path, site: str, now: float | None = None) -> list[str]:
    """Nodes of a site to be avoided, by name."""
    since = (time.time() if now is None else now) - AVOIDED_S
    return sorted({fault.node for fault in faults(folder) if fault.site == site and fault.at >= since})


def forget(folder: Path, node: str) -> bool:
    """Take a node back into service; returns whether anything was known against it."""
    known = any(fault.node == node for fault in faults(folder))
    if known:
        append_line(RunsFolder(folder).bad_nodes, {"at": time.time(), "node": node, "forget": True})
    return known
