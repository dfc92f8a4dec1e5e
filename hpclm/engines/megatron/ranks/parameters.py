"""What megatron-core writes on torch's parameters and reads there; torch's own type knows none of it."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn


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
