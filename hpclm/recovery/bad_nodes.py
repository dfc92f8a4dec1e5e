"""The bad-node list: the faulty nodes, in a file next to the runs to which every job adds.

`<runs_dir>/nodes.jsonl`: one object per line, {"at", "node", "site", "run", "stage", "reason"}; `{"at", "node",
"forget": true}` cancels earlier entries of that node. A node is excluded for a day: by then it has been repaired, or it
is reported as faulty again.
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
    """A faulty node, as reported by a run. `at` is unix seconds."""

    at: float
    node: str
    site: str
    run: str
    stage: str
    reason: str


def faults(folder: Path) -> list[Fault]:
    """All entries, oldest first, without the removed ones."""
    found: list[Fault] = []
    for line in read_lines(RunsFolder(folder).bad_nodes):
        node, at = line.get("node"), line.get("at")
        # A name from this file is passed to sbatch: only valid node names are accepted.
        if not isinstance(node, str) or not _NODE.fullmatch(node) or not isinstance(at, (int, float)):
            continue
        if line.get("forget"):
            found = [fault for fault in found if fault.node != node]
        else:
            words = {key: str(line.get(key, "")) for key in ("site", "run", "stage", "reason")}
            found.append(Fault(float(at), node, **words))
    return found


def suspects(folder: Path, site: str, now: float | None = None) -> list[str]:
    """Nodes of a site to exclude, by name."""
    since = (time.time() if now is None else now) - AVOIDED_S
    return sorted({fault.node for fault in faults(folder) if fault.site == site and fault.at >= since})


def forget(folder: Path, node: str) -> bool:
    """Remove a node from the list; returns whether it was on it."""
    known = any(fault.node == node for fault in faults(folder))
    if known:
        append_line(RunsFolder(folder).bad_nodes, {"at": time.time(), "node": node, "forget": True})
    return known
