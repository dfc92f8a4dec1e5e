"""A stage of engine hf as on a GPU, on a device that refuses to work with tensors of the host.

The device is torch's `meta` in FakeTensorMode, which checks that tensors are together: a stray one of the CPU raises.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

DEVICE = torch.device("meta")


def moved(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` with new parameters: torch swaps no FakeTensors of different devices."""
    for child in module.children():
        moved(child, change)
    for name, one in module._parameters.items():
        if one is not None:
            module._parameters[name] = nn.Parameter(change(one.detach()), one.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


def run(asked_file: str) -> None:
    """In a process of its own. Prints `together`."""
    from hpclm.core.fine_tune_spec import FineTuneStageSpec
    from hpclm.core.records import from_dict
    from hpclm.engines.hf.ranks import document_batches, fake_sharding, hf_trace
    from hpclm.engines.hf.ranks.hf_groups import DataGroup
    from hpclm.engines.hf.ranks.hf_loading import empty_model
    from hpclm.training.ranks.rank_tracing import host_reads
    from hpclm.worker.ranks.storage_counter import StorageCounter

    class OnDevice(hf_trace.NoWeights):
        """Weights and buffers of the device."""

        def __init__(self, model: Any, mode: FakeTensorMode) -> None:
            super().__init__(model, mode)
            with mode:
                for module in model.modules():
                    held = {name: one for name, one in module._buffers.items() if one is not None}
                    module._buffers.update({name: one.to(DEVICE) for name, one in held.items()})

        def _made(self, name: str, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
            made = torch.empty(parameter.shape, dtype=dtype).to(DEVICE)
            return nn.Parameter(made, requires_grad=parameter.requires_grad)

    asked = json.loads(Path(asked_file).read_text())
    spec = from_dict(FineTuneStageSpec, asked["spec"])
    if asked["stray"]:  # as a batch that nobody moved
        document_batches.DocumentBatch.to = lambda self, device: self  # type: ignore[method-assign]
    nn.Module._apply = moved  # type: ignore[method-assign]
    torch.autocast = lambda *given, **also: contextlib.nullcontext()  # type: ignore[misc,assignment]
    make = torch.tensor
    # on `meta` it would be no FakeTensor
    torch.tensor = lambda data, *, device=None, **also: make(data, **also).to(device or "cpu")
    kinds = sys.modules["torch.optim.optimizer"]
    kinds._get_fused_kernels_supported_devices = lambda: ["meta"]  # type: ignore[attr-defined]
    world = spec.parallel.world_size
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    group = DataGroup(0, world, 0, DEVICE)
    folder = Path(spec.base)
    model = empty_model(folder, spec.huggingface)
    mode = FakeTensorMode()
    weights = OnDevice(model, mode)
    with fake_sharding.without_ranks(), mode, host_reads(true=False), hf_trace.numbers():
        hf_trace.train(spec, folder, model, weights, group, StorageCounter())
    print("together")
