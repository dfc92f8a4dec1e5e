"""A stage as on a GPU, on a device that refuses to work with tensors of the host: `python refusing_device.py < JSON`.

The device is torch's `meta` in FakeTensorMode, which checks that tensors are together: a stray one of the CPU raises.
Nothing of `cpu_standins` is active: what a GPU run calls of `torch.cuda` does nothing here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

DEVICE = torch.device("meta")


def nothing() -> Callable[..., None]:
    """A function of its own each time: torch's compiler, which is imported on the way, refuses one for two names."""
    return lambda *ignored, **also: None


def become_gpu() -> None:
    """`torch.cuda` of a machine that has one."""
    for name in ("synchronize", "empty_cache", "manual_seed", "set_rng_state", "_lazy_init"):
        setattr(torch.cuda, name, nothing())
    torch.cuda.get_rng_state = lambda *ignored, **also: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.current_device = lambda: DEVICE  # type: ignore[assignment,return-value]
    torch.Tensor.cuda = lambda self, *ignored, **also: self.to(DEVICE)  # type: ignore[method-assign]
    torch.compile = lambda function=None, **options: function or (lambda inner: inner)  # type: ignore[assignment]
    # the fake groups have no such device
    torch.distributed.batch_isend_irecv = lambda p2p_op_list: []
    make = torch.tensor
    # on `meta` it would be no FakeTensor
    torch.tensor = lambda data, *, device=None, **also: make(data, **also).to(device or "cpu")
    sys.modules["torch.optim.optimizer"]._get_fused_kernels_supported_devices = lambda: ["meta"]  # type: ignore[attr-defined]
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *ignored, **also: torch.zeros(16, dtype=torch.uint8)
    random._set_cuda_rng_state = nothing()


def main() -> None:
    from hpclm.core.records import from_dict
    from hpclm.core.spec import StageSpec

    asked: dict[str, Any] = json.load(sys.stdin)
    spec = replace(from_dict(StageSpec, asked["spec"]), device="gpu")
    become_gpu()
    from hpclm.data.ranks import batches
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks import trace
    from hpclm.training.ranks.rank_tracing import host_reads
    from hpclm.worker.ranks.storage_counter import StorageCounter

    made = process_groups.initialize(FakeStore(), asked["rank"], spec.parallel, torch.device("cpu"), 1, backend="fake")
    if asked.get("stray"):  # as a batch that nobody moved
        batches.TrainingBatch.to = batches.GenerationBatch.to = lambda self, device: self  # type: ignore[method-assign]
    with FakeTensorMode(), host_reads(), trace._lists_of_ones(spec), trace._no_random_states():
        run = trace._answers if spec.task == "evaluate" else trace._steps
        run(spec, replace(made, device=DEVICE), StorageCounter())
    print("together")


if __name__ == "__main__":
    main()
