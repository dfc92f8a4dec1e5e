"""The GPUs of this machine, read from the driver through NVML (nvidia-ml-py). What it
does not report is None, never 0."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hpclm.core.gpu_types import Capability

State = Literal["ok", "no-bindings", "no-library", "no-driver", "error"]
_MIB = 1 << 20
# Error codes of nvml.h that concern the GPU rather than the query.
_GPU_IS_LOST, _RESET_REQUIRED = 15, 16
_SICK = {
    _GPU_IS_LOST: "has fallen off the bus; the node needs a reboot",
    _RESET_REQUIRED: "needs a reset before it can be used again",
}


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU. The number is the host's, which a container may not know."""

    pid: int
    memory_mib: int | None


@dataclass(frozen=True)
class Slice:
    """A part of a GPU in MIG mode, for CUDA a device of its own."""

    uuid: str | None
    memory_total_mib: int | None
    memory_free_mib: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU; None is unknown.

    Attributes:
        nvlinks: links that are up; 0 where there are links and none is up, None where it has none.
        ecc_uncorrected: uncorrectable memory errors since the driver was loaded.
        remap_pending: a damaged memory row needs a reset to be remapped.
        remap_failed: a damaged row could not be remapped.
        fabric: why its NVSwitches cannot be used yet; None where they can, and where it has none.
        slices: in MIG mode.
        trouble: why it does not respond.
    """

    index: int
    name: str | None = None
    uuid: str | None = None
    bus: str | None = None
    memory_total_mib: int | None = None
    memory_free_mib: int | None = None
    capability: Capability | None = None
    nvlinks: int | None = None
    ecc_uncorrected: int | None = None
    ecc_corrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None
    fabric: str | None = None
    slices: tuple[Slice, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True)
class Probe:
    """What NVML reported. `cuda` is the newest CUDA version that the driver supports."""

    state: State
    detail: str | None = None
    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()


class _SickError(Exception):
    """The GPU, not the query, failed."""


def probe() -> Probe:
    """Query NVML. Never raises: if NVML cannot be used, the probe's state says why."""
    try:
        import pynvml
    except ImportError:
        return Probe("no-bindings", "the Python package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _not_begun(error)
    try:
        driver = _ask(pynvml, pynvml.nvmlSystemGetDriverVersion)
        raw = _ask(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
        cuda = f"{raw // 1000}.{raw % 1000 // 10}" if raw else None
        count = pynvml.nvmlDeviceGetCount()
        return Probe("ok", None, driver, cuda, tuple(_gpu(pynvml, index) for index in range(count)))
    except (pynvml.NVMLError, _SickError) as error:
        return Probe("error", str(error))
    finally:
        pynvml.nvmlShutdown()


def _not_begun(error: Any) -> Probe:
    library_not_found, driver_not_loaded, mismatch = 12, 9, 18
    if error.value == library_not_found:
        return Probe("no-library", "libnvidia-ml.so.1 was not found: no NVIDIA driver, or a container without --nv")
    if error.value == driver_not_loaded:
        return Probe("no-driver", "the NVIDIA driver is not loaded")
    if error.value == mismatch:
        return Probe("error", "the driver was updated under a running kernel module; the node needs a reboot")
    return Probe("error", f"NVML did not start: {error}")


def _ask(pynvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, None where this driver or GPU has none. Raises _SickError if the GPU failed."""
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _SICK:
            raise _SickError(_SICK[error.value]) from None
        return None


def _gpu(pynvml: Any, index: int) -> Gpu:
    """One GPU, as far as it can be queried."""
    known: dict[str, Any] = {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for part in (_identity, _memory, _health, _fabric, _slices):
            known |= part(pynvml, handle)
        return Gpu(index, **known)
    except _SickError as sick:
        return Gpu(index, **known, trouble=str(sick))
    except pynvml.NVMLError as error:
        return Gpu(index, **known, trouble=_SICK.get(error.value, f"does not answer: {error}"))


def _identity(pynvml: Any, handle: Any) -> dict[str, Any]:
    pci = _ask(pynvml, pynvml.nvmlDeviceGetPciInfo, handle)
    bus = pci.busId if pci else None
    capability = _ask(pynvml, pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return {
        "name": _ask(pynvml, pynvml.nvmlDeviceGetName, handle),
        "uuid": _ask(pynvml, pynvml.nvmlDeviceGetUUID, handle),
        "bus": bus.decode() if isinstance(bus, bytes) else bus,
        "capability": tuple(capability) if capability else None,
    }


def _memory(pynvml: Any, handle: Any) -> dict[str, Any]:
    memory = _ask(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
    running = _ask(pynvml, pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    processes = None
    if running is not None:
        processes = tuple(
            GpuProcess(one.pid, None if one.usedGpuMemory is None else one.usedGpuMemory // _MIB) for one in running
        )
    return {
        "memory_total_mib": memory.total // _MIB if memory else None,
        "memory_free_mib": memory.free // _MIB if memory else None,
        "processes": processes,
    }


def _health(pynvml: Any, handle: Any) -> dict[str, Any]:
    def ecc(kind: int) -> int | None:
        since_load = pynvml.NVML_VOLATILE_ECC
        errors: int | None = _ask(pynvml, pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, since_load)
        return errors

    remapped = _ask(pynvml, pynvml.nvmlDeviceGetRemappedRows, handle)
    links = [_ask(pynvml, pynvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(_links(pynvml))]
    known = [link for link in links if link is not None]
    return {
        "ecc_uncorrected": ecc(pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        "ecc_corrected": ecc(pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        "remap_pending": bool(remapped[2]) if remapped else None,
        "remap_failed": bool(remapped[3]) if remapped else None,
        "nvlinks": sum(map(bool, known)) if known else None,
    }


def _fabric(pynvml: Any, handle: Any) -> dict[str, Any]:
    """Until the fabric manager has set up the NVSwitches, CUDA refuses to start (error 802)."""
    states = {1: "is not started", 2: "is being set up"}
    if not hasattr(pynvml, "nvmlDeviceGetGpuFabricInfo"):  # nvidia-ml-py before 12.535
        return {}
    info = pynvml.c_nvmlGpuFabricInfo_t()
    answered = _ask(pynvml, pynvml.nvmlDeviceGetGpuFabricInfo, handle, ctypes.byref(info)) is not None
    return {"fabric": states.get(info.state) if answered else None}


def _slices(pynvml: Any, handle: Any) -> dict[str, Any]:
    found = []
    for index in range(_ask(pynvml, pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = _ask(pynvml, pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if part is not None:
            memory = _memory(pynvml, part)
            uuid = _ask(pynvml, pynvml.nvmlDeviceGetUUID, part)
            found.append(Slice(uuid, memory["memory_total_mib"], memory["memory_free_mib"]))
    return {"slices": tuple(found)}


def _links(pynvml: Any) -> int:
    return int(getattr(pynvml, "NVML_NVLINK_MAX_LINKS", 18))
