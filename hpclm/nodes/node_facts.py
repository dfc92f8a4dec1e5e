"""What a node is, as JSON: `python -m hpclm.nodes.node_facts SHARED_FOLDER OUT_FOLDER` writes OUT_FOLDER/<node>.json.

Standard library only, and nvidia-ml-py where it is installed. None is unknown.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpclm.core.files import write_json
from hpclm.core.node_name import node_name
from hpclm.core.records import to_dict
from hpclm.core.registries import RUNTIMES
from hpclm.nodes.nvml import Probe, probe

_GIB = 1 << 30


@dataclass(frozen=True)
class FolderFacts:
    """A folder seen from a node.

    Attributes:
        trouble: why it cannot be written to.
        locks: whether files in it can be locked.
        skew_s: this clock less the one that stamps files: the server's on a network file system.
    """

    path: str
    visible: bool
    writable: bool = False
    trouble: str | None = None
    locks: bool | None = None
    skew_s: float | None = None
    free_gib: float | None = None


@dataclass(frozen=True)
class NodeFacts:
    """A node. `device_files`: how many GPUs have one; `runtimes`: container runtimes that are installed."""

    node: str
    kernel: str
    python: str
    cpus: int
    device_files: int
    gpu: Probe
    folder: FolderFacts
    memory_gib: float | None = None
    memory_available_gib: float | None = None
    shm_gib: float | None = None
    tmp_free_gib: float | None = None
    visible_devices: str | None = None
    runtimes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def facts(folder: Path) -> NodeFacts:
    """Everything about this node. `folder` is on the file system that runs use."""
    began = time.monotonic()
    found = NodeFacts(
        node=node_name(),
        kernel=platform.release(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        memory_gib=_memory_gib("MemTotal"),
        memory_available_gib=_memory_gib("MemAvailable"),
        shm_gib=free_gib(Path("/dev/shm")),
        tmp_free_gib=free_gib(Path("/tmp")),
        device_files=device_files(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        runtimes=[name for name, one in RUNTIMES.items() if one.program and shutil.which(one.program)],
        gpu=probe(),
        folder=shared_folder(folder),
    )
    return replace(found, seconds=round(time.monotonic() - began, 3))


def device_files() -> int:
    """How many GPUs have a device file here."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def free_gib(folder: Path) -> float | None:
    """GiB that this user can still write there; None if the folder does not exist."""
    try:
        return round(shutil.disk_usage(folder).free / _GIB, 3)
    except OSError:
        return None


def shared_folder(folder: Path) -> FolderFacts:
    """Whether the folder can be read, written and locked from here, its free space, and the difference of the
    clocks."""
    found = FolderFacts(str(folder), folder.is_dir(), free_gib=free_gib(folder))
    mark = folder / f".hpclm-{node_name()}-{os.getpid()}"
    try:
        with mark.open("w") as stream:
            stream.write("x")
            stream.flush()
            os.fsync(stream.fileno())
            skew_s = round(time.time() - os.fstat(stream.fileno()).st_mtime, 3)
            found = replace(found, writable=True, skew_s=skew_s, locks=_locks(stream.fileno()))
    except OSError as error:
        found = replace(found, trouble=error.strerror)
    finally:
        if found.writable:
            mark.unlink(missing_ok=True)
    return found


def _locks(handle: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(handle, fcntl.LOCK_UN)
    except OSError:
        return False
    return True


def _memory_gib(key: str) -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return round(int(kib) / (1 << 20), 1) if kib else None


def main(folder: str, out: str) -> None:
    write_json(Path(out) / f"{node_name()}.json", to_dict(facts(Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:3])
