"""PyTorch's FSDP2: weights, gradients and optimizer state divided over the ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.engines.hf.ranks import quantized, saved_modules
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.hf_loading import Weights, blocks_of
from hpclm.engines.hf.ranks.precision import dtype_of


def shard(model: Any, weights: Weights, spec: FineTuneStageSpec, group: DataGroup, dtype: torch.dtype) -> None:
    """Fill the empty model layer by layer, and divide each before the next has memory.

    Args:
        dtype: of the weights that a rank keeps.
    """
    options = _options(spec, group)
    for name, block in list(blocks_of(model)):
        weights.fill([(name, block)], dtype)
        fully_shard(block, **options)
        quantized.told_by_divided(block)
    weights.fill([("", model)], dtype)
    model.tie_weights()
    words, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is not words.weight:
        # the widest matrices: each is gathered where it is used. Of what is divided so, there can be no copy, and DoRA,
        # which reads a layer's weight after it, would find a part
        lora = spec.method.lora
        others = saved_modules.chosen(model, [*lora.modules_to_save, *(lora.targets if lora.dora else [])])
        for module in (words, output):
            if module not in others:
                fully_shard(module, **options)
    fully_shard(model, **options)


def place_adapters(model: Any, spec: FineTuneStageSpec, group: DataGroup) -> None:
    """Divide what an adapter trains whole beside its factors. What has no matrix stays on every rank, as those do: on
    its device, where PEFT takes that of weights that may be offloaded."""
    matrices = [copy for copy in saved_modules.copies(model) if any(one.dim() > 1 for one in copy.parameters())]
    options = _options(spec, group) if matrices else {}  # a mesh makes communicators
    for copy in matrices:
        fully_shard(copy, **options)
    for parameter in model.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(group.device)


def _options(spec: FineTuneStageSpec, group: DataGroup) -> dict[str, Any]:
    found: dict[str, Any] = {"mesh": mesh(spec, group), "mp_policy": _precision(spec)}
    if spec.sharding.offload == "all":
        found["offload_policy"] = CPUOffloadPolicy(pin_memory=group.device.type == "cuda")
    return found


def mesh(spec: FineTuneStageSpec, group: DataGroup) -> DeviceMesh:
    kind, size = group.device.type, spec.sharding.group_size
    if size is None or size == group.world_size:
        return init_device_mesh(kind, (group.world_size,))
    return init_device_mesh(kind, (group.world_size // size, size), mesh_dim_names=("replicate", "shard"))


def _precision(spec: FineTuneStageSpec) -> MixedPrecisionPolicy:
    """Computed in the recipe's precision; gradients are summed in fp32."""
    compute = dtype_of(spec.trainer.precision)
    if compute == torch.float32 or spec.method.method != "full":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
