"""The check of a node before the ranks start: `python -m hpclm.hardware.preflight STAGE_DIR ATTEMPT_DIR`.

One task a node, in the image the ranks will run in, in about a second: it imports no torch. What it finds goes to
`<attempt>/preflight/<node>.json`: {"node", "verdict", "findings", "seconds"}. The verdict is `ok`, `node` (this node is
at fault: the run goes on without it) or `run` (it would be the same everywhere). Exit codes: 0, 60, 61.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpclm.runs.files import write_json

EXIT = {"ok": 0, "node": 60, "run": 61}
_ENGINE = ("torch", "megatron", "numpy", "safetensors", "tokenizers")
_MIN_FREE_GIB = 1.0
_MAX_SKEW_S = 60.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing found; `at_fault` is node or run, for a warning None."""

    severity: str
    check: str
    message: str
    at_fault: str | None = None


def node_name() -> str:
    """What the scheduler calls this machine."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def examine(stage_dir: Path, spec: dict[str, Any]) -> Iterator[Finding]:
    """Everything that speaks against starting the stage here."""
    yield from _file_system(stage_dir)
    yield from _packages()
    yield from _inputs(spec)


def _file_system(stage_dir: Path) -> Iterator[Finding]:
    probe = stage_dir / f".preflight-{node_name()}"
    try:
        probe.write_text("x")
        skew = abs(probe.stat().st_mtime - time.time())
        probe.unlink()
    except OSError as error:
        yield Finding("error", "run folder", f"{stage_dir} cannot be written to: {error.strerror}", "node")
        return
    if skew > _MAX_SKEW_S:
        yield Finding("error", "clock", f"its clock is {skew:.0f} s off the file system's", "node")
    free = shutil.disk_usage(stage_dir).free / _GIB
    if free < _MIN_FREE_GIB:
        yield Finding("error", "space", f"{free:.2f} GiB are free in {stage_dir}; make room", "run")


def _packages() -> Iterator[Finding]:
    missing = [name for name in _ENGINE if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{sys.executable} has no {', '.join(missing)}; name an image or an interpreter that has them"
        yield Finding("error", "packages", what, "run")


def _inputs(spec: dict[str, Any]) -> Iterator[Finding]:
    data, text = spec.get("data") or {}, spec.get("text") or {}
    paths = [path for part in ("train", "validation", "test") for path in data.get(part) or []]
    for path in [*paths, *(text.get("paths") or [])]:
        if not os.access(path, os.R_OK):
            yield Finding("error", "inputs", f"{path} cannot be read here; is its folder mounted?", "node")


def main(stage_dir: str, attempt_dir: str) -> int:
    began = time.monotonic()
    spec = json.loads((Path(stage_dir) / "spec.json").read_text())
    findings = list(examine(Path(stage_dir), spec))
    faults = {finding.at_fault for finding in findings if finding.severity == "error"}
    verdict = "run" if "run" in faults else "node" if faults else "ok"
    report = {
        "node": node_name(),
        "verdict": verdict,
        "findings": [asdict(finding) for finding in findings],
        "seconds": time.monotonic() - began,
    }
    write_json(Path(attempt_dir) / "preflight" / f"{node_name()}.json", report)
    for finding in findings:
        print(f"{node_name()}: {finding.severity}: {finding.check}: {finding.message}", flush=True)
    return EXIT[verdict]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
