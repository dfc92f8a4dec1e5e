"""Layers in 4 bits for the tracer: what bitsandbytes keeps and makes of a layer, without its kernels, which FakeTensors
do not have."""

from __future__ import annotations

import contextlib
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

_BLOCK = 64


class _Product(torch.autograd.Function):
    """bitsandbytes.autograd.MatMul4Bit: the weight is whole in both passes, and kept in neither."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
        ctx.shape = shape
        return torch.nn.functional.linear(states, states.new_empty(shape), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (given,) = gradients
        return given @ given.new_empty(ctx.shape), None, None


def packed(parameter: Any) -> nn.Parameter:
    """A parameter of `quantized.use_four_bits` without values: two numbers a byte, and a byte for a block's scale."""
    size = parameter.numel()
    made: Any = nn.Parameter(torch.empty((size // 2, 1), dtype=torch.uint8), requires_grad=False)
    made.scales = torch.empty(size // _BLOCK, dtype=torch.uint8)
    made.compress_statistics, made.quant_type = parameter.compress_statistics, parameter.quant_type
    found: nn.Parameter = made
    return found


def _forward(layer: Any, states: Tensor) -> Tensor:
    shape = torch.Size((layer.out_features, layer.in_features))
    made: Tensor = _Product.apply(states, layer.bias, shape)  # type: ignore[no-untyped-call]
    return made


def products() -> contextlib.AbstractContextManager[Any]:
    """Products of such layers."""
    from bitsandbytes.nn import Linear4bit

    return patch.object(Linear4bit, "forward", _forward)
