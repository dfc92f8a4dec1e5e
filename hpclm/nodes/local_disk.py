"""A node's local disk for what DeepSpeed offloads (ZeRO-Infinity): folder, file system, direct writes, space, libaio.

DeepSpeed says of these in its first step alone, after the queue (op_builder/async_io.py; ops/aio).
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpclm.core.preflight_report import NodeFinding

GIB = 1 << 30
_BLOCK = 1 << 20
# In memory, or over a network: neither is what an NVMe is for.
_NOT_LOCAL = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "fuse.sshfs", "ceph", "wekafs"}
_IN_MEMORY = {"tmpfs", "ramfs"}
_CHECK = "local disk"


def examine(folder: str, needed_bytes: int, mounts: Path = Path("/proc/mounts")) -> Iterator[NodeFinding]:
    """What keeps the stage from offloading to `folder` here."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{folder} cannot be made ({error.strerror}); is the disk mounted into the container?"
        yield NodeFinding("error", _CHECK, what, "node")
        return
    kind = file_system(path, mounts)
    if kind in _IN_MEMORY:
        yield NodeFinding("error", _CHECK, f"{folder} is in memory ({kind}); give a folder on a disk", "run")
    elif kind in _NOT_LOCAL:
        yield NodeFinding("warning", _CHECK, f"{folder} is on {kind}, which is slow for this; give a node's own disk")
    trouble = direct_write(path)
    if trouble is not None:
        yield NodeFinding(
            "error", _CHECK, f"{folder} takes no direct writes ({trouble}); give a node's own disk", "node"
        )
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        what = f"{folder} has {free / GIB:.1f} GiB free, and about {needed_bytes / GIB:.1f} are needed"
        yield NodeFinding("error", _CHECK, f"{what}; free some space, or take more nodes", "node")
    yield from _library()


def file_system(path: Path, mounts: Path) -> str:
    """The type of the file system that a path is on, "" where unknown."""
    found, longest = "", -1
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    whole = path.resolve()
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # spaces in names are written as \040
        place = Path(fields[1].encode().decode("unicode_escape"))
        if (place == whole or place in whole.parents) and len(place.parts) > longest:
            found, longest = fields[2], len(place.parts)
    return found


def direct_write(folder: Path) -> str | None:
    """Write a MiB around the page cache, as DeepSpeed's asynchronous writes go. What went wrong, or None."""
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".hpclm-")
        os.close(handle)
        direct = os.open(name, os.O_WRONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, _BLOCK) as block:  # at a page's beginning, as such writes must be
                os.write(direct, block)
        finally:
            os.close(direct)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)
    return None


def _library() -> Iterator[NodeFinding]:
    if ctypes.util.find_library("aio") is None:
        what = "libaio is not here; use an image that has it (Debian: libaio1, libaio-dev)"
        yield NodeFinding("error", _CHECK, what, "run")
    if importlib.util.find_spec("deepspeed") is None:
        return  # which the check of packages says
    built = importlib.util.find_spec("deepspeed.ops.aio.async_io_op") is not None
    if not built and not (_there("g++", "c++", "clang++") and _there("ninja")):
        what = "DeepSpeed's async_io is compiled when it is first used, and there is no C++ compiler or no ninja here; "
        yield NodeFinding("error", _CHECK, f"{what}use an image with DS_BUILD_AIO=1, or with g++ and ninja", "run")


def _there(*names: str) -> bool:
    return any(shutil.which(name) for name in names)
