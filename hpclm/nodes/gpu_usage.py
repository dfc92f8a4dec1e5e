"""Memory, utilisation and power of a node's GPUs, as rows beside the stage's metrics, until its standard input ends:
`python -m hpclm.nodes.gpu_usage STAGE_DIR NODE_RANK [PAUSE_S]`.

A process of its own, since a broken GPU can hang NVML, and with a file of its own for each node, since rank 0 rewrites
metrics.jsonl. It shows every GPU that NVML shows: under a scheduler that confines jobs to their devices, the job's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpclm.core.files import append_line, read_object
from hpclm.core.layout import StagePaths

_PAUSE_S = 30.0
_GIB = 1 << 30


def main(stage_dir: str, node_rank: str, pause_s: str = str(_PAUSE_S)) -> None:
    os.nice(10)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # for the rank
    stage, node = StagePaths(Path(stage_dir)), int(node_rank)
    with _nvml() as pynvml:
        ending = pynvml is None
        while not ending:
            ending = bool(select.select([sys.stdin], [], [], float(pause_s))[0])
            values = usage(pynvml)
            if values:
                _write(stage, node, values)


def _write(stage: StagePaths, node: int, values: dict[str, float]) -> None:
    step = (read_object(stage.progress) or {}).get("step")
    row: dict[str, Any] = {"kind": "device", "step": step if type(step) is int else 0}
    row |= {f"node{node}/{name}": value for name, value in values.items()}
    path = stage.device_metrics(node)
    with contextlib.suppress(OSError):  # a full disk is for the rank to report
        path.parent.mkdir(exist_ok=True)
        append_line(path, {**row, "time": time.time()})


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """The bindings, begun; None where there is no driver, no GPU or no package."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # pynvml's classes are not known where it is missing; and the preflight has said what is wrong
        yield None
        return
    yield pynvml  # the process ends with it, and nvmlShutdown could hang


def usage(pynvml: Any) -> dict[str, float]:
    """`gpu0/memory_gib`, `gpu0/utilization_percent` (time in which a kernel ran, over the driver's last second or less)
    and `gpu0/power_w` of every GPU; what a GPU does not report is left out."""
    values: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                for name, ask in _QUESTIONS.items():
                    with contextlib.suppress(pynvml.NVMLError):
                        values[f"gpu{index}/{name}"] = float(ask(pynvml, handle))
    return values


_QUESTIONS: dict[str, Callable[[Any, Any], float]] = {
    "memory_gib": lambda pynvml, handle: pynvml.nvmlDeviceGetMemoryInfo(handle).used / _GIB,
    "utilization_percent": lambda pynvml, handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    "power_w": lambda pynvml, handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
