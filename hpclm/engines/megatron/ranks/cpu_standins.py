"""megatron-core on a CPU: replacements for the few CUDA calls it always makes.

megatron-core runs on gloo and host memory once `device="cuda"` and a handful of `torch.cuda` functions resolve to
the CPU. They are replaced, in this process only, if a recipe sets `device: cpu`; on a GPU none of this runs.
Tensor factories are wrapped instead of installing a TorchFunctionMode, because a mode would be entered on every tensor
operation of the training loop and a factory is called only a few times a step.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn")


def install() -> None:
    """Route megatron-core's CUDA calls to the CPU. Raises RuntimeError where a GPU is visible to torch."""
    if torch.cuda.is_available():
        raise RuntimeError("the CPU stand-ins cannot be used in a process that sees a GPU; hide it or use device: gpu")
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    stand_ins: list[tuple[object, str, Callable[..., object]]] = [
        # megatron-core decorates its fused kernels with torch.compile as it is imported; none of them is used here, and
        # the decorator alone loads the whole compiler, which takes a third of a rank's start time
        (torch, "compile", _uncompiled),
        (torch.cuda, "current_device", lambda: _CPU),
        (torch.cuda, "synchronize", lambda *args, **kwargs: None),
        (torch.cuda, "empty_cache", lambda: None),
        (torch.cuda, "manual_seed", torch.manual_seed),
        (torch.cuda, "get_rng_state", lambda *args, **kwargs: torch.get_rng_state()),
        (torch.cuda, "set_rng_state", lambda state, *args, **kwargs: torch.set_rng_state(state)),
        (torch.Tensor, "cuda", lambda self, *args, **kwargs: self),
    ]
    for owner, name, stand_in in stand_ins:
        setattr(owner, name, stand_in)
    # of Apex, Transformer Engine and CUDA graphs, which no CPU has
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    # with dropout it says at each layer that the CPU's generator moved, as it must
    logging.getLogger("megatron.core.tensor_parallel.random").setLevel(logging.ERROR)

    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def _uncompiled(function: Callable[..., object] | None = None, **options: object) -> Callable[..., object]:
    return function if function is not None else _uncompiled


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    if hasattr(factory, "__wrapped__"):
        return factory

    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapped
