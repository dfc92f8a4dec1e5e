"""Compares what a node's driver reports with what a stage needs, as findings. Pure; standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hpclm.core.findings import Severity
from hpclm.core.gpu_types import driver_problem, gib_of, precision_problem, too_large
from hpclm.core.preflight_report import NodeFinding
from hpclm.nodes.nvml import Gpu, Probe


@dataclass(frozen=True)
class Need:
    """What a stage needs from each node; None is unknown and not checked.

    Attributes:
        memory_mib: estimate of the most loaded rank.
        cuda: the CUDA its engine was built for.
        compat: whether the image brings NVIDIA's forward compatibility libraries.
    """

    devices: int | None = None
    precision: str | None = None
    memory_mib: int | None = None
    cuda: str | None = None
    compat: bool = False


def visible(gpus: Sequence[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """Those of CUDA_VISIBLE_DEVICES (indices or UUIDs; None: all). CUDA stops at the first unknown name."""
    if chosen is None:
        return tuple(gpus)
    found: list[Gpu] = []
    for word in (piece.strip() for piece in chosen.split(",")):
        if not word:
            break
        if word.startswith("MIG-"):
            part = _slice(gpus, word)
            if part is None:
                return tuple(gpus)  # a driver that does not list them
            found.append(part)
            continue
        one = next((gpu for gpu in gpus if word == str(gpu.index) or (gpu.uuid or "").startswith(word)), None)
        if one is None:
            break
        found.append(one)
    return tuple(found)


def _slice(gpus: Sequence[Gpu], word: str) -> Gpu | None:
    """A slice of a GPU as the device that it is for CUDA; what else runs on the GPU does not touch it."""
    for gpu in gpus:
        for one in gpu.slices:
            if (one.uuid or "").startswith(word):
                total, free = one.memory_total_mib, one.memory_free_mib
                return replace(gpu, uuid=one.uuid, memory_total_mib=total, memory_free_mib=free, processes=None)
    return None


def examine(probe: Probe, need: Need, chosen: str | None = None, device_files: int = 0) -> Iterator[NodeFinding]:
    """All problems of a node's GPUs for a stage.

    Args:
        chosen: CUDA_VISIBLE_DEVICES, None where it is not set.
        device_files: how many /dev/nvidia<N> there are, used if NVML cannot be queried.
    """
    if probe.state != "ok":
        yield from _unanswered(probe, need, device_files)
        return
    gpus = visible(probe.gpus, chosen)
    slices = (chosen or "").count("MIG-")  # each is a separate device for CUDA
    seen = slices or len(gpus)
    if need.devices is not None and seen < need.devices:
        yield NodeFinding("error", "gpu count", _missing(need.devices, seen, len(probe.gpus)), "node")
    for gpu in gpus:
        yield from health(gpu)
        yield from _fits(gpu, need)
    yield from _alike(gpus)
    yield from _precision(gpus, need)
    if need.cuda and probe.driver and (problem := driver_problem(need.cuda, probe.driver)):
        if need.compat:
            yield NodeFinding("warning", "driver", f"{problem} (the image has compatibility libraries that may help)")
        else:
            yield NodeFinding("error", "driver", problem, "node")


def _missing(wanted: int, seen: int, there: int) -> str:
    hidden = f" ({there} are in the node, CUDA_VISIBLE_DEVICES hides the rest)" if there > seen else ""
    return f"{wanted} GPUs are needed, {seen} found{hidden}"


def _unanswered(probe: Probe, need: Need, device_files: int) -> Iterator[NodeFinding]:
    wanted = need.devices or 0
    if probe.state == "no-bindings":
        if device_files < wanted:
            yield NodeFinding("error", "gpu count", f"{wanted} GPUs are needed, /dev has {device_files}", "node")
        severity: Severity = "warning" if wanted or device_files else "info"
        yield NodeFinding(severity, "gpu", f"unknown: {probe.detail}; /dev has {device_files} GPUs")
    elif wanted:
        # Device files without the library: the container is started without the driver, here and on every node.
        everywhere = probe.state == "no-library" and device_files >= wanted
        yield NodeFinding("error", "gpu", str(probe.detail), "run" if everywhere else "node")
    else:
        yield NodeFinding("info" if probe.state == "no-library" else "warning", "gpu", str(probe.detail))


def health(gpu: Gpu) -> Iterator[NodeFinding]:
    """What is wrong with one GPU, independent of the stage."""
    who = f"GPU {gpu.index}" + (f" ({gpu.bus})" if gpu.bus else "")
    if gpu.trouble is not None:
        yield NodeFinding("error", "gpu", f"{who} {gpu.trouble}", "node")
    if gpu.fabric is not None:
        what = f"{who}: its NVSwitch fabric {gpu.fabric}; start nvidia-fabricmanager, or wait until it has"
        yield NodeFinding("error", "fabric", what, "node")
    if gpu.ecc_uncorrected:
        what = f"{who} has had {gpu.ecc_uncorrected} uncorrectable memory errors since its driver was loaded"
        if gpu.remap_pending is None:
            yield NodeFinding("error", "ecc", f"{what}; have it reset or replaced", "node")
        else:  # it maps damaged rows to spare ones, and says below where that did not do
            yield NodeFinding("warning", "ecc", f"{what}, and is in use since")
    if gpu.remap_failed:
        yield NodeFinding("error", "row remap", f"{who} could not remap a damaged memory row; replace the GPU", "node")
    elif gpu.remap_pending:
        yield NodeFinding("error", "row remap", f"{who} needs a reset to remap a damaged memory row", "node")


def _fits(gpu: Gpu, need: Need) -> Iterator[NodeFinding]:
    """Memory compared with the estimate, and other processes on the GPU."""
    others = gpu.processes or ()
    held = ", ".join(f"process {one.pid}" + (f" {one.memory_mib} MiB" if one.memory_mib else "") for one in others)
    needed, free, total = need.memory_mib, gpu.memory_free_mib, gpu.memory_total_mib
    if needed is not None and total is not None and needed > total:
        yield NodeFinding("error", "gpu memory", too_large(needed, total, gpu.name or "the GPU"), "run")
    elif needed is not None and free is not None and needed > free:
        why = f"used by {held}" if held else "used by processes that NVML does not list"
        what = f"GPU {gpu.index} has {gib_of(free)} of {gib_of(total)} GiB free, a rank needs {gib_of(needed)}; {why}"
        yield NodeFinding("error", "gpu memory", what, "node")
    elif held:
        yield NodeFinding("warning", "processes", f"GPU {gpu.index} is in use by others: {held}")


def _alike(gpus: Sequence[Gpu]) -> Iterator[NodeFinding]:
    names = sorted({gpu.name for gpu in gpus if gpu.name})
    if len(names) > 1:
        yield NodeFinding(
            "warning", "gpu types", f"different GPU types in one node: {', '.join(names)}; the slowest sets the speed"
        )
    links = {gpu.nvlinks for gpu in gpus if gpu.nvlinks is not None}
    if len(links) > 1:
        counts = ", ".join(f"GPU {gpu.index}: {gpu.nvlinks}" for gpu in gpus)
        yield NodeFinding("warning", "nvlink", f"NVLinks are down, so tensor parallelism is slower: {counts}")


def _precision(gpus: Sequence[Gpu], need: Need) -> Iterator[NodeFinding]:
    if need.precision is None:
        return
    for capability in sorted({gpu.capability for gpu in gpus if gpu.capability}):
        name = next(gpu.name for gpu in gpus if gpu.capability == capability) or "this GPU"
        if problem := precision_problem(need.precision, capability, name):
            yield NodeFinding("error", "precision", problem, "run")
    if gpus and all(gpu.capability is None for gpu in gpus):
        yield NodeFinding(
            "warning", "precision", f"unknown whether these GPUs have {need.precision}: NVML does not report it"
        )


def odd_ones(types: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Nodes whose GPUs differ from those of most nodes, each with the difference.
    `types`: the GPU names of each node."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for node in sorted(types):
        kinds.setdefault(types[node], []).append(node)
    if len(kinds) < 2:
        return {}
    usual = max(kinds, key=lambda kind: len(kinds[kind]))
    return {
        node: f"has {_counted(kind)} where most nodes have {_counted(usual)}"
        for kind, nodes in kinds.items()
        if kind != usual
        for node in nodes
    }


def _counted(names: tuple[str, ...]) -> str:
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names)) or "no GPU"
