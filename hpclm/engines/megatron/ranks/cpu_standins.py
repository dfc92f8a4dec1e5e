"""megatron-core on a CPU: replacements for the few CUDA calls it always makes.

megatron-core runs on gloo and host memory once `device="cuda"` and a handful of `torch.cuda` functions resolve to
the CPU. They are replaced, in this process only, if a recipe sets `device: cpu`; on a GPU none of this runs.
Tensor factories are wrapped instead of installing a TorchFunctionMode, because a mode would be entered on every tensor
operation of the training loop and a factory is called only a few times a step.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
        (torch.cuda, "Stream", _Stream),
        (torch.cuda, "current_stream", _Stream),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
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
    from megatron.core.tensor_parallel import mappings
    from megatron.core.transformer.moe import token_dispatcher

    mappings._gather_along_first_dim = _gather(mappings._gather_along_first_dim)
    mappings._reduce_scatter_along_first_dim = _reduce_scatter(mappings._reduce_scatter_along_first_dim)
    # counts of tokens, which a GPU copies to the host on a stream of its own
    token_dispatcher.maybe_move_tensor_to_cpu = _on_the_host
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


class _Stream:
    """A CUDA stream (and an event of it) where everything has happened."""

    def wait_stream(self, other: object) -> None: ...

    def record_event(self) -> _Stream:
        return self

    def synchronize(self) -> None: ...


def _gather(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Tokens of experts, of which each tensor rank has another number: gloo gathers equal parts alone."""

    def gather(states: Tensor, group: Any, sizes: list[int] | None = None, use_global_buffer: bool = False) -> Tensor:
        if sizes is None or group.size() == 1:
            return own(states, group, None, use_global_buffer)
        longest = max(sizes)
        padded = states.new_zeros(longest, *states.shape[1:])
        padded[: len(states)] = states
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    return gather


def _reduce_scatter(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The way back of `_gather`."""

    def scatter(states: Tensor, group: Any, sizes: list[int] | None = None, use_global_buffer: bool = False) -> Tensor:
        if sizes is None or group.size() == 1:
            return own(states, group, None, use_global_buffer)
        summed = states.contiguous().clone()
        torch.distributed.all_reduce(summed, group=group)
        mine: Tensor = torch.split(summed, sizes)[group.rank()]
        return mine

    return scatter


def _on_the_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


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
