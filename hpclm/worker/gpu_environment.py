"""Variables that CUDA, NCCL and torch read when they start, for a rank of ours on a GPU. No torch is imported.

Sources: the CUDA programming guide (environment variables); torch's ProcessGroupNCCL (flight recorder; names up to and
since 2.8) and CUDACachingAllocator; NCCL's user guide; Megatron-LM's training/arguments.py (one hardware queue).
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from hpclm.core.files import read_object
from hpclm.core.layout import AttemptPaths

# Collectives that the flight recorder remembers of each group: a few steps of a large model.
_RECORDED = "2000"
# From this compute capability on, kernels and communication keep their order with more than one hardware queue.
_BLACKWELL = 10


def gpu_environment(paths: AttemptPaths, node: str, *, divided: bool) -> dict[str, str]:
    """What is set where the user has set nothing.

    Args:
        divided: layers or sequences are, over tensor or context ranks.
    """
    recorder = str(paths.flight_recorder)
    wanted = {
        # as NVML and nvidia-smi count them
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # micro-batches of different lengths would fragment the memory
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_FR_BUFFER_SIZE": _RECORDED,
        "TORCH_NCCL_TRACE_BUFFER_SIZE": _RECORDED,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": recorder,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": recorder,
    }
    if divided and (_architecture(paths, node) or 0) < _BLACKWELL:
        # Megatron's order of communication and compute kernels requires one hardware queue
        wanted["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if not can_compile():
        wanted["TORCHDYNAMO_DISABLE"] = "1"
    if "PYTORCH_ALLOC_CONF" in os.environ:
        del wanted["PYTORCH_CUDA_ALLOC_CONF"]
    return wanted


def set_gpu_environment(paths: AttemptPaths, node: str, *, divided: bool) -> None:
    """Set it; a value set by the user is kept."""
    for name, value in gpu_environment(paths, node, divided=divided).items():
        os.environ.setdefault(name, value)
    paths.flight_recorder.parent.mkdir(parents=True, exist_ok=True)


def can_compile(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torch.compile can work here: its kernels are started by code that a C compiler makes with Python.h."""
    compilers = (environment["CC"],) if environment.get("CC") else ("cc", "gcc", "clang")
    has_compiler = any(shutil.which(one.split()[0]) for one in compilers if one.split())
    return has_compiler and (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


def _architecture(paths: AttemptPaths, node: str) -> int | None:
    """The lowest major compute capability of the node's GPUs as its preflight check found them, None if unknown."""
    report = read_object(paths.preflight_report(node)) or {}
    facts = report.get("facts")
    gpu = facts.get("gpu") if isinstance(facts, dict) else None
    gpus = gpu.get("gpus") if isinstance(gpu, dict) else None
    known = [one.get("capability") for one in gpus or () if isinstance(one, dict)]
    found = [pair[0] for pair in known if isinstance(pair, list) and pair and isinstance(pair[0], int)]
    return min(found, default=None)
