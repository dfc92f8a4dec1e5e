"""What a stage needs of each node, read from its spec and, for CUDA, from the engine of this interpreter."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from hpclm.core.spec import ProgramStageSpec, StageSpec, from_dict
from hpclm.nodes.gpu_checks import Need
from hpclm.planning.memory import estimate

_CUDA = re.compile(r"^cuda\s*(?::[^=]*)?=\s*(?:'([0-9.]+)'|\"([0-9.]+)\"|None)", re.MULTILINE)
_COMPAT = Path("/usr/local/cuda/compat")


def need_of(raw: dict[str, Any]) -> Need:
    """From spec.json. Figures that cannot be had are None; of a program of the user's only the devices are known."""
    if raw.get("task") == "program":
        program = from_dict(ProgramStageSpec, raw)
        return Need(devices=program.parallel.devices_per_node)
    spec = from_dict(StageSpec, raw)
    return Need(
        devices=spec.parallel.devices_per_node,
        precision=spec.trainer.precision,
        memory_mib=_memory_mib(spec),
        cuda=torch_cuda(),
        compat=any(_COMPAT.glob("libcuda.so*")),
    )


def _memory_mib(spec: StageSpec) -> int | None:
    length = spec.text.seq_length if spec.text else spec.data.max_seq_length if spec.data else None
    if length is None:
        return None
    guess = estimate(
        spec.task,
        spec.model,
        spec.parallel,
        spec.batch,
        spec.trainer.precision,
        seq_length=length,
        prompt=spec.prompt,
        templates=tuple(spec.templates),
        generation=spec.generation,
    )
    return guess.total >> 20


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
