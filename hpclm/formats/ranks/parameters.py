"""What megatron-core writes on torch's parameters and reads there; torch's own type knows none of it."""

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
        tensor_model_parallel: tensor ranks hold parts of it and not copies.
    """

    main_grad: Tensor
    sequence_parallel: bool
    tensor_model_parallel: bool


def attributes(parameter: nn.Parameter) -> MegatronParameter:
    """The same parameter, by megatron-core's attributes."""
    return cast(MegatronParameter, parameter)


def mark_tensor_parallel(module: MegatronModule) -> None:
    """Say of each parameter whether tensor ranks hold parts of it, which the gradient norm must know.

    megatron-core does it while it initialises weights, and it is told not to.
    """
    parameters = {parameter.data_ptr(): parameter for parameter in module.parameters()}
    for shard in sharded_tensors(module):
        parameter = parameters.get(shard.data.data_ptr())
        if parameter is not None and shard.local_shape != shard.global_shape:
            attributes(parameter).tensor_model_parallel = True
