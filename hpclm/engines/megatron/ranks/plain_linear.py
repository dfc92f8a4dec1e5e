"""Linear layers that are not split over ranks, as plain torch layers.

megatron-core's go through autograd functions of its own, for gradients and communication that only a split needs, and
add the bias in a second kernel. On a GPU the host's work for them was more than that of the matrix products of a model
of 0.4 B parameters (p-tuning, H200).
"""

from __future__ import annotations

import functools

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor
from torch.nn import functional


def make_plain(gpt: GPTModel) -> None:
    """Replace the forward of each linear layer; for a model with tensor parallel size 1."""
    for layer in gpt.modules():
        if isinstance(layer, ColumnParallelLinear | RowParallelLinear):
            layer.forward = functools.partial(_linear, layer)


def _linear(
    layer: ColumnParallelLinear | RowParallelLinear, states: Tensor, weight: Tensor | None = None, **_: object
) -> tuple[Tensor, Tensor | None]:
    """The layer's output with its bias, so that the caller has none to add; an expert's is weighed by the caller."""
    if layer.is_expert:
        return functional.linear(states, layer.weight), layer.bias
    return functional.linear(states, layer.weight if weight is None else weight, layer.bias), None
