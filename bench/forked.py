"""Measurements in processes of their own that start with torch, megatron-core and the peers loaded.

On a GPU a measurement takes seconds and loading all of that ten. A process that has CUDA started cannot be forked, so
the one that forks never touches a GPU.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from hpclm.core.light_imports import without

_MODULES = (
    "hpclm.engines.megatron.ranks.training",
    "hpclm.engines.megatron.ranks.generation",
    "hpclm.engines.megatron.ranks.trace",
    "hpclm.worker.ranks.devices",
    "torch._dynamo",
    "transformers.models.gpt2.modeling_gpt2",
    "peft",
)


def load() -> None:
    """Load what measurements on a GPU need; what is not installed is left to those that need it."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch then asks NVML whether there is a GPU
    with without("bitsandbytes"):  # peft loads it where it is, and it starts CUDA
        for module in _MODULES:
            try:
                importlib.import_module(module)
            except ImportError as error:
                print(f"{module} is not loaded: {error}", file=sys.stderr)


def forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own, as JSON carries it; RuntimeError with its last words if it fails."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            said = {"made": work()}
        except BaseException as error:
            traceback.print_exc()
            said = {"failed": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as file:
            json.dump(said, file)
        sys.stderr.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if not text:
        raise RuntimeError(f"the process ended with {os.waitstatus_to_exitcode(status)}")
    found = json.loads(text)
    if "failed" in found:
        raise RuntimeError(found["failed"])
    return found["made"]
