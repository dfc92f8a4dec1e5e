"""The preflight check of a node before the ranks start: `python -m hpclm.nodes.preflight STAGE_DIR ATTEMPT_DIR`.

One task per node, in the image the ranks will run in, in about a second: it imports no torch. What it finds goes to
`<attempt>/preflight/<node>.json`: a `PreflightReport`. Exit codes: 0, 60 (this node is faulty), 61 (it would
be the same everywhere).
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpclm.core.errors import DamagedError
from hpclm.core.exit_codes import ExitCode
from hpclm.core.files import write_json
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.core.node_name import node_name
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.preflight_report import NodeFinding, PreflightReport, fault_of
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed
from hpclm.core.spec import NodeNeeds
from hpclm.nodes import gpu_checks, local_disk
from hpclm.nodes.need import need_of
from hpclm.nodes.node_facts import FolderFacts, device_files, free_gib, shared_folder
from hpclm.nodes.nvml import Probe, probe

EXIT = {"ok": ExitCode.OK, "node": ExitCode.PREFLIGHT_NODE, "run": ExitCode.PREFLIGHT_RUN}
_MIN_FREE_GIB = 1.0
_MIN_SHM_GIB = 1.0
_MAX_SKEW_S = 60.0
_SYS_INFINIBAND, _DEV_INFINIBAND = Path("/sys/class/infiniband"), Path("/dev/infiniband")
# Ranks of an attempt that was killed a moment ago may still hold memory.
_RETRY_S, _PAUSE_S = 10.0, 1.0


@dataclass(frozen=True)
class Checked:
    """What the preflight reads of any engine's spec."""

    device: str
    parallel: ParallelSpec
    needs: NodeNeeds = field(default_factory=NodeNeeds)


def examine(stage_dir: Path, spec: Checked, gpu: Probe | None) -> Iterator[NodeFinding]:
    """Everything that prevents the stage from starting here. `gpu` is None for a stage on the CPU."""
    yield from folder_findings(shared_folder(stage_dir))
    yield from _packages(spec.needs.packages)
    yield from _inputs(spec)
    if spec.needs.local_disk is not None:
        yield from local_disk.examine(spec.needs.local_disk, spec.needs.local_bytes)
    if gpu is not None:
        yield from _gpus(spec, gpu)


def folder_findings(folder: FolderFacts) -> Iterator[NodeFinding]:
    """What `node_facts.shared_folder` saw, as findings."""
    path = folder.path
    if not folder.visible:
        yield NodeFinding("error", "run folder", f"{path} does not exist; is its file system mounted?", "node")
        return
    if not folder.writable:
        yield NodeFinding("error", "run folder", f"{path} cannot be written to: {folder.trouble}", "node")
        return
    if folder.skew_s is not None and abs(folder.skew_s) > _MAX_SKEW_S:
        off = f"its clock is {abs(folder.skew_s):.0f} s off the file system's; fix its time service"
        yield NodeFinding("error", "clock", off, "node")
    if folder.free_gib is not None and folder.free_gib < _MIN_FREE_GIB:
        yield NodeFinding("error", "space", f"{folder.free_gib:.2f} GiB are free in {path}; free some space", "run")


def _packages(names: list[str]) -> Iterator[NodeFinding]:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{sys.executable} has no {', '.join(missing)}; use an image or an interpreter that has them"
        yield NodeFinding("error", "packages", what, "run")


def _inputs(spec: Checked) -> Iterator[NodeFinding]:
    for path in spec.needs.inputs:
        if not os.access(path, os.R_OK):
            yield NodeFinding("error", "inputs", f"{path} cannot be read here; is its folder mounted?", "node")


def _gpus(spec: Checked, gpu: Probe) -> Iterator[NodeFinding]:
    need = need_of(spec.parallel, spec.needs)
    if need.cuda == "":
        what = f"torch of {sys.executable} was built without CUDA; use an image or an interpreter with a CUDA build"
        yield NodeFinding("error", "cuda", what, "run")
    yield from gpu_checks.examine(gpu, need, os.environ.get("CUDA_VISIBLE_DEVICES"), device_files())
    shm = free_gib(Path("/dev/shm"))
    if shm is not None and shm < _MIN_SHM_GIB:
        yield NodeFinding(
            "warning", "shared memory", f"/dev/shm has {shm:.2f} GiB free; NCCL between GPUs may need more"
        )
    if spec.parallel.nodes > 1:
        yield from network_findings()


def network_findings(sys_folder: Path = _SYS_INFINIBAND, dev_folder: Path = _DEV_INFINIBAND) -> Iterator[NodeFinding]:
    """What keeps NCCL from using this node's InfiniBand; it then uses TCP, or fails to register memory."""
    if not sys_folder.is_dir() or not any(sys_folder.iterdir()):
        return
    if not dev_folder.is_dir():
        what = f"the node has InfiniBand, and {dev_folder} is not here: NCCL will use TCP; mount it into the container"
        yield NodeFinding("warning", "infiniband", what)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:
        what = f"only {soft >> 10} KiB of memory may be locked, and NCCL over InfiniBand locks more"
        yield NodeFinding("warning", "locked memory", f"{what}; ask for an unlimited memlock (PropagateResourceLimits)")


def _look_with_retries(stage_dir: Path, spec: Checked) -> tuple[list[NodeFinding], Probe | None]:
    """Check the node; if only GPU memory is short, check again for a while."""
    until = time.monotonic() + _RETRY_S
    while True:
        gpu = probe() if spec.device == "gpu" else None
        findings = list(examine(stage_dir, spec, gpu))
        wrong = [finding for finding in findings if finding.severity == "error"]
        held = wrong and all(one.check == "gpu memory" and one.at_fault == "node" for one in wrong)
        if not held or time.monotonic() >= until:
            return findings, gpu
        time.sleep(_PAUSE_S)


def main(stage_dir: str, attempt_dir: str) -> int:
    began = time.monotonic()
    try:
        raw = read_sealed(StagePaths(Path(stage_dir)).spec) or {}
        spec = from_dict(Checked, raw, ignore_unknown=True, where="spec.json")
        findings, gpu = _look_with_retries(Path(stage_dir), spec)
    except DamagedError as error:
        mend = "`hpclm resume` writes it again from the run's plan"
        findings, gpu = [NodeFinding("error", "run folder", f"{error}; {mend}", "run")], None
    except (OSError, ValueError) as error:
        what = f"{stage_dir}/spec.json cannot be read here ({error}); is the run's file system mounted?"
        findings, gpu = [NodeFinding("error", "run folder", what, "node")], None
    word = fault_of(findings)
    for finding in findings:
        print(f"{node_name()}: {finding.severity}: {finding.check}: {finding.message}", flush=True)
    facts: dict[str, object] = {"unix_time": time.time(), "gpu": to_dict(gpu) if gpu else None}
    report = PreflightReport(node_name(), word, findings, facts, round(time.monotonic() - began, 3))
    try:
        write_json(AttemptPaths(Path(attempt_dir)).preflight_report(node_name()), to_dict(report))
    except OSError as error:
        print(f"{node_name()}: error: run folder: {attempt_dir} cannot be written to: {error.strerror}", flush=True)
        return EXIT["node"]
    return EXIT[word]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
