"""Attributes that megatron-core sets on torch's parameters; torch's own type does not have them."""

from __future__ import annotations

from typing import Protocol, cast

from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from hpclm.formats.ranks.shards import sharded_tensors


class MegatronParameter(Protocol):
    """Attributes of a parameter.

    Attributes:
        main_grad: fp32, where DistributedDataParallel sums the gradient.
        sequence_parallel: its gradient is of this rank's part of the sequence, to be summed over tensor ranks.
        tensor_model_parallel: tensor ranks have parts of it, not copies.
        allreduce: False for an expert's under expert parallelism: other ranks have its copies than those of the rest.
    """

    main_grad: Tensor
    sequence_parallel: bool
    tensor_model_parallel: bool
    allreduce: bool


def attributes(parameter: nn.Parameter) -> MegatronParameter:
    """The same parameter, by megatron-core's attributes."""
    return cast(MegatronParameter, parameter)


def is_experts(parameter: nn.Parameter) -> bool:
    """Whether it belongs to one of the experts that expert parallelism divides."""
    return not getattr(parameter, "allreduce", True)


def mark_tensor_parallel(module: MegatronModule) -> None:
    """Mark for each parameter whether it is split over tensor ranks, which the gradient norm needs.

    megatron-core does this while it initialises weights, which is switched off here.
    """
    parameters = {parameter.data_ptr(): parameter for parameter in module.parameters()}
    for shard in sharded_tensors(module):
        parameter = parameters.get(shard.data.data_ptr())
        if parameter is not None and shard.local_shape != shard.global_shape:
            attributes(parameter).tensor_model_parallel = True
