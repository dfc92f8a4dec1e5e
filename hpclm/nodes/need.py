"""What a stage needs of each node, read from its spec and, for CUDA, from the engine of this interpreter."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import NodeNeeds
from hpclm.nodes.gpu_checks import Need

_CUDA = re.compile(r"^cuda\s*(?::[^=]*)?=\s*(?:'([0-9.]+)'|\"([0-9.]+)\"|None)", re.MULTILINE)
_COMPAT = Path("/usr/local/cuda/compat")


def need_of(parallel: ParallelSpec, needs: NodeNeeds) -> Need:
    """From a spec. Unknown figures are None; for a user's program only the devices are known."""
    torch = "torch" in needs.packages
    return Need(
        devices=parallel.devices_per_node,
        precision=needs.precision,
        memory_mib=None if needs.memory_bytes is None else needs.memory_bytes >> 20,
        cuda=torch_cuda() if torch else None,
        compat=torch and any(_COMPAT.glob("libcuda.so*")),
    )


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, "" for a build without, None where torch is not found. Imports no torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = _CUDA.search(text)
    return (match[1] or match[2] or "") if match else None
