"""From facts to a diagnosis: what was found, whether it is a problem, and what it means for a recipe. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from hpclm.core.gpu_types import PRECISION_NEEDS, Capability, dotted
from hpclm.nodes.gpu_checks import Need, examine, odd_ones
from hpclm.nodes.node_facts import FolderFacts, NodeFacts
from hpclm.nodes.nvml import Gpu, Probe
from hpclm.nodes.preflight import folder_findings

_WARN_SKEW_S = 5.0


# `none`: not found, but not needed.
State = Literal["error", "warning", "info", "none"]


@dataclass(frozen=True)
class Row:
    """One line of the diagnosis. `means`: the consequence for a recipe, and how to fix it."""

    node: str
    check: str
    severity: State
    found: str
    means: str = ""


def diagnose(node: str, facts: NodeFacts, needs: dict[str, Need], *, expect_gpus: int | None = None) -> list[Row]:
    """Everything about one node.

    Args:
        needs: of the recipe's GPU stages, by name; empty without a recipe.
        expect_gpus: the number configured in the scheduler; None: unknown.
    """
    probe = facts.gpu
    rows = [_machine(node, facts), *_gpu_rows(node, probe)]
    wanted = [*needs.items()] or [("", Need(devices=expect_gpus))]
    chosen, files = facts.visible_devices, facts.device_files
    for stage, need in wanted:
        means = f"stage {stage} cannot run here" if stage else "runs that use this node's GPUs fail"
        for one in examine(probe, need, chosen if stage else None, files):
            absent = one.check == "gpu" and one.severity == "info" and probe.state != "ok"
            state: State = "none" if absent else one.severity
            rows.append(Row(node, one.check, state, one.message, means if state == "error" else ""))
    rows += _folder_rows(node, facts.folder)
    return list(dict.fromkeys(rows))


def _machine(node: str, facts: NodeFacts) -> Row:
    memory = "unknown" if facts.memory_gib is None else f"{facts.memory_gib:.0f} GiB"
    shm = "unknown" if facts.shm_gib is None else f"{facts.shm_gib:.1f} GiB"
    return Row(node, "machine", "info", f"{facts.cpus} CPUs, {memory} memory, {shm} free in /dev/shm")


def _gpu_rows(node: str, probe: Probe) -> Iterator[Row]:
    if probe.state != "ok":
        return
    if not probe.gpus:
        yield Row(node, "gpu", "none", "the driver reports no GPU", "only stages with device: cpu")
    driver = f"driver {probe.driver or 'unknown'}, CUDA up to {probe.cuda or 'unknown'}"
    yield Row(node, "driver", "info", driver, _image_words(probe.cuda))
    kinds: dict[tuple[str | None, int | None, Capability | None, int | None], list[Gpu]] = {}
    for gpu in probe.gpus:
        if gpu.trouble is None:
            kinds.setdefault((gpu.name, gpu.memory_total_mib, gpu.capability, gpu.nvlinks), []).append(gpu)
    for (name, memory, capability, links), gpus in kinds.items():
        size = "memory unknown" if memory is None else f"{memory / 1024:.0f} GiB"
        linked = "NVLink none or unknown" if links is None else f"{links} NVLinks up"
        able = f"capability {dotted(capability)}" if capability else "capability unknown"
        found = f"{len(gpus)} × {name or 'name unknown'}, {size}, {able}, {linked}"
        yield Row(node, "gpu", "info", found, precision_words(capability))
    unknown = [what for what, field in _CARED_FOR.items() if any(getattr(gpu, field) is None for gpu in probe.gpus)]
    if unknown:
        yield Row(node, "gpu", "info", f"not reported by this driver or GPU: {', '.join(unknown)}")


_CARED_FOR = {"ECC errors": "ecc_uncorrected", "row remapping": "remap_failed", "running processes": "processes"}


def _image_words(cuda: str | None) -> str:
    return f"images for CUDA {cuda.split('.')[0]} and older" if cuda else ""


def precision_words(capability: Capability | None) -> str:
    """The precisions that a recipe can use: `fp32, fp16, bf16, tf32; no fp8`."""
    if capability is None:
        return f"unknown whether it has {', '.join(PRECISION_NEEDS)}"
    able = [name for name, needed in PRECISION_NEEDS.items() if capability >= needed]
    lacking = [name for name in PRECISION_NEEDS if name not in able]
    return ", ".join(["fp32", "fp16", *able]) + (f"; no {', '.join(lacking)}" if lacking else "")


def _folder_rows(node: str, folder: FolderFacts) -> Iterator[Row]:
    wrong = list(folder_findings(folder))
    for one in wrong:
        yield Row(node, one.check, one.severity, one.message, "runs cannot be stored there")
    if not wrong:
        free = "unknown" if folder.free_gib is None else f"{folder.free_gib:.1f} GiB"
        skew = "unknown" if folder.skew_s is None else f"{abs(folder.skew_s):.1f} s off"
        found = f"{folder.path}: writable, {free} free, clock {skew}"
        yield Row(node, "runs folder", "info", found)
    if folder.locks is False:
        found = f"{folder.path} does not support file locks"
        yield Row(node, "runs folder", "warning", found, "programs that lock files there (library caches) may hang")


def compare(here: NodeFacts, nodes: dict[str, NodeFacts]) -> Iterator[Row]:
    """What no node can detect by itself: different GPU types, and clocks that differ from the login node's."""
    probes = {name: one.gpu for name, one in nodes.items()}
    types = {name: tuple(gpu.name or "unknown" for gpu in one.gpus) for name, one in probes.items() if one.gpus}
    for node, what in odd_ones(types).items():
        yield Row(
            node,
            "gpu types",
            "warning",
            what,
            "a run on both is as slow as the slower one; separate them by constraint",
        )
    drivers = {name: (one.driver,) for name, one in probes.items() if one.driver}
    if len(set(drivers.values())) > 1:
        said = ", ".join(f"{name}: {driver}" for name, (driver,) in sorted(drivers.items()))
        yield Row(
            "cluster",
            "driver",
            "warning",
            f"not the same on all nodes: {said}",
            "the oldest driver limits the choice of image",
        )
    own = here.folder.skew_s
    for name, one in sorted(nodes.items()):
        skew = one.folder.skew_s
        if own is not None and skew is not None and abs(skew - own) > _WARN_SKEW_S:
            off = f"its clock differs from this machine's by {abs(skew - own):.0f} s"
            yield Row(name, "clock", "warning", off, "times in logs and status differ by as much")


def worst(rows: Iterable[Row]) -> State:
    """The highest severity of the rows."""
    found = {row.severity for row in rows}
    return "error" if "error" in found else "warning" if "warning" in found else "info"
