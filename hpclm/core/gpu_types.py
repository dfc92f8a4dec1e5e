"""What a GPU of a known type can do, and which driver an image needs. Standard library only.

Sources: compute capabilities and memory from NVIDIA's "CUDA GPU Compute Capability" list and the data sheets; number
formats from the tuning guides (bf16 and TF32 came with Ampere, 8.0; FP8 with Ada, 8.9); drivers from table 2 ("minor
version compatibility") of the CUDA compatibility guide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

Capability = tuple[int, int]

# Below these capabilities a GPU has no such tensor cores: kernels fail or emulate them at a fraction of the speed.
PRECISION_NEEDS: dict[str, Capability] = {"bf16": (8, 0), "tf32": (8, 0), "fp8": (8, 9)}
# First driver of a CUDA major version; a newer toolkit of the same major runs on it.
_CUDA_NEEDS: dict[int, tuple[int, ...]] = {10: (440, 33), 11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}


@dataclass(frozen=True)
class GpuType:
    """One product. `memory_gib` lists every size it is sold in, smallest first."""

    name: str
    capability: Capability
    memory_gib: tuple[int, ...]


# `rtx6000` alone is left out: a Turing and an Ada product have that name.
_TYPES = {
    one.name: one
    for one in (
        GpuType("p100", (6, 0), (12, 16)),
        GpuType("v100", (7, 0), (16, 32)),
        GpuType("v100s", (7, 0), (32,)),
        GpuType("t4", (7, 5), (16,)),
        GpuType("rtx8000", (7, 5), (48,)),
        GpuType("rtx2080ti", (7, 5), (11,)),
        GpuType("a100", (8, 0), (40, 80)),
        GpuType("a100x", (8, 0), (80,)),
        GpuType("a30", (8, 0), (24,)),
        GpuType("a10", (8, 6), (24,)),
        GpuType("a10g", (8, 6), (24,)),
        GpuType("a16", (8, 6), (16,)),
        GpuType("a40", (8, 6), (48,)),
        GpuType("a5000", (8, 6), (24,)),
        GpuType("a6000", (8, 6), (48,)),
        GpuType("rtx3090", (8, 6), (24,)),
        GpuType("rtx4090", (8, 9), (24,)),
        GpuType("l4", (8, 9), (24,)),
        GpuType("l40", (8, 9), (48,)),
        GpuType("l40s", (8, 9), (48,)),
        GpuType("h100", (9, 0), (64, 80, 96)),
        GpuType("h200", (9, 0), (141,)),
        GpuType("gh200", (9, 0), (96, 144)),
        GpuType("b200", (10, 0), (192,)),
        GpuType("gb200", (10, 0), (192,)),
        GpuType("b300", (10, 3), (288,)),
        GpuType("gb300", (10, 3), (288,)),
        GpuType("rtx5090", (12, 0), (32,)),
    )
}


LARGEST_GIB = max(size for one in _TYPES.values() for size in one.memory_gib)


def gpu_type(name: str) -> GpuType | None:
    """The product behind a GRES type (`a100`, `nvidia_a100-sxm4-80gb`, `a100_1g.5gb`) or NVML's name; None: unknown.

    A size in the name narrows the memory; of a MIG slice it is the slice's.
    """
    words = re.split(r"[^a-z0-9.]+", name.lower())
    pairs = [first + second for first, second in pairwise(words)]
    triples = [first + second for first, second in zip(pairs, words[2:], strict=False)]
    known = next((_TYPES[word] for word in [*triples, *pairs, *words] if word in _TYPES), None)
    if known is None:
        return None
    size = re.search(r"(?<![0-9])([0-9]{1,3})gb", name.lower())
    return GpuType(known.name, known.capability, (int(size[1]),)) if size else known


def dotted(capability: Capability) -> str:
    """`8.0`."""
    return f"{capability[0]}.{capability[1]}"


def precision_problem(precision: str, capability: Capability, gpu: str) -> str | None:
    """Why a GPU of this capability does not support `precision`, and what it supports; None if it does."""
    needed = PRECISION_NEEDS.get(precision)
    if needed is None or capability >= needed:
        return None
    instead = "bf16" if precision == "fp8" and capability >= PRECISION_NEEDS["bf16"] else "fp16 or fp32"
    return (
        f"{precision} needs compute capability {dotted(needed)}, {gpu} has {dotted(capability)}; "
        f"set trainer.precision to {instead}, or use GPUs that support it"
    )


def version(text: str) -> tuple[int, ...]:
    """`535.104.05` as numbers; it stops at the first part that is not a number."""
    numbers = []
    for piece in text.strip().split("."):
        if not piece.isdecimal():
            break
        numbers.append(int(piece))
    return tuple(numbers)


def driver_problem(cuda: str, driver: str) -> str | None:
    """Why a driver cannot run code built for CUDA `cuda` (`12.4`); None when it can, or when either is not known."""
    wanted, has = version(cuda), version(driver)
    needed = _CUDA_NEEDS.get(wanted[0]) if wanted else None
    if needed is None or not has or has >= needed:
        return None
    least = ".".join(f"{number:02d}" if place else str(number) for place, number in enumerate(needed))
    return (
        f"CUDA {cuda} needs driver {least} or newer, this is {driver}; use an image built for an older CUDA, or have "
        "the driver updated"
    )


def too_large(needed_mib: float, total_mib: float, gpu: str) -> str:
    """A rank's estimate that is larger than the device."""
    return (
        f"a rank needs an estimated {gib_of(needed_mib)} GiB, {gpu} has {gib_of(total_mib)} "
        f"({gib_of(needed_mib - total_mib)} too little); raise parallel.tensor or parallel.pipeline, or lower "
        "batch.micro"
    )


def gib_of(mib: float | None) -> str:
    """MiB as GiB with one digit, `?` if unknown."""
    return "?" if mib is None else f"{mib / 1024:.1f}"
