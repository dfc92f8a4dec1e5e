"""What the tracers of the engines share: tensors without bytes that can be read, and kernels that a CPU lacks.

Tensors are torch's FakeTensors, which have a shape and a type but no bytes; process groups are torch's fake ones, which
answer at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hpclm.core.rank_trace import RankTrace
from hpclm.training.ranks.remembered_results import RememberedResults
from hpclm.worker.ranks.storage_counter import StorageCounter

# cuBLAS's, for the forward and the backward thread, as torch sets them on Hopper (ATen/cuda/CublasHandlePool.cpp;
# older GPUs have a quarter); measured on an H200: 64 to 75 MiB above what the tensors hold, in eleven shapes.
WORKSPACES = 2 * 32 << 20


_COALESCED = (
    torch.ops.c10d.allreduce_coalesced_.default,
    torch.ops.c10d.reduce_scatter_tensor_coalesced_.default,
    torch.ops.c10d.allgather_into_tensor_coalesced_.default,
)
# These FakeTensors have, in half a millisecond each.
_OF_ONE = (
    torch.ops.c10d._allgather_base_.default,
    torch.ops.c10d._reduce_scatter_base_.default,
)


class _HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What the host would read from a tensor without bytes is 1; and the collectives that FakeTensors do not have."""

    def __init__(self, true: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.true = true

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # more than half of all calls
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            if kind is torch.bool or (kind is torch.uint8 and not self.true):  # DeepSpeed's truth values
                return self.true
            return 1.0 if kind.is_floating_point else 1
        if func in _COALESCED:
            return FakeWork().boxed()
        if func in _OF_ONE:
            return args[0], FakeWork().boxed()
        return func(*args, **(kwargs or {}))


def host_reads(*, true: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Numbers that the host reads are 1; of truth values it reads `true`."""
    mode: contextlib.AbstractContextManager[Any] = _HostReads(true)
    return mode


@contextlib.contextmanager
def without_bytes(mode: FakeTensorMode, counter: StorageCounter, *, true: bool = True) -> Iterator[None]:
    """Tensors are FakeTensors, `counter` sees each of them, and the host reads numbers (see `host_reads`)."""
    # there are no bytes to copy, and torch would keep both storages for ever
    copied = patch.object(torch.UntypedStorage, "copy_", lambda storage, source, non_blocking=None: storage)
    with mode, RememberedResults(mode), counter, resized_told(counter), copied, host_reads(true=true):
        yield


@contextlib.contextmanager
def resized_told(counter: StorageCounter) -> Iterator[None]:
    """Storages that are given back and filled again are counted so: FSDP2's weights, and what recomputed norms of
    megatron-core discard."""
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        resize(storage, size)
        counter.resized(storage)
        return storage

    with patch.object(torch.UntypedStorage, "resize_", resized):
        yield


class _FusedRmsNorm(torch.autograd.Function):
    """What a GPU keeps of an RMS norm (its input, and a number a token); the steps of a CPU keep five times that."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight, states.new_empty(states.shape[:-1], dtype=torch.float32))
        return torch.empty_like(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        states, weight, _ = ctx.saved_tensors
        return torch.empty_like(states), torch.empty_like(weight)


@contextlib.contextmanager
def kernels_of_gpus() -> Iterator[None]:
    """Operations for which a GPU has a kernel and a CPU has not."""

    def forward(norm: torch.nn.RMSNorm, states: Tensor) -> Tensor:
        normed: Tensor = _FusedRmsNorm.apply(states, norm.weight)  # type: ignore[no-untyped-call]
        return normed

    from hpclm.training.ranks import flash_attention as flash

    norms = patch.object(torch.nn.RMSNorm, "forward", forward)
    dropout = patch.object(torch.nn.functional, "dropout", _dropout)
    usable = patch.object(flash, "usable", flash.takes)
    groups = patch.object(flash, "lacks_groups", lambda query, mask: mask is not None or not flash.takes(query))
    with norms, dropout, usable, groups:
        yield


def _dropout(states: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A GPU keeps a byte a value of what is dropped; a CPU the factors."""
    dropped: Tensor = torch.native_dropout(states, p, training)[0] if training and p > 0 else states
    return dropped


def counted(
    counter: StorageCounter, stage: str, rank: int, began: float, assumed: list[str], *, on_gpu: bool, pipeline: int = 0
) -> RankTrace:
    """What the counter has seen of a rank, and on a GPU its kernels' workspaces. `began`: by time.perf_counter."""
    peak = counter.peak
    kinds = {kind: size for kind, size in sorted(peak.kinds.items()) if size}
    total = peak.total
    if on_gpu:
        kinds["workspaces"] = WORKSPACES
        total += WORKSPACES
    seconds = round(time.perf_counter() - began, 2)
    return RankTrace(stage, rank, pipeline, total, kinds, peak.where, assumed, seconds)
