"""Layers in 4 bits for the tracer: what bitsandbytes keeps and makes of a layer, without its kernels, which FakeTensors
do not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
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
    made.compress_statistics, made.quant_type = parameter.compress_statistics, parameter.quant_type
    parameter.module.quant_state = SimpleNamespace(
        shape=parameter.shape,
        absmax=torch.empty(size // _BLOCK, dtype=torch.uint8),
        nested=parameter.compress_statistics,
        quant_type=parameter.quant_type,
    )
    found: nn.Parameter = made
    return found


def _matmul(states: Tensor, weight: Tensor, *, bias: Tensor | None, quant_state: Any) -> Tensor:
    made: Tensor = _Product.apply(states, bias, quant_state.shape)  # type: ignore[no-untyped-call]
    return made


def _dequantized(weight: Tensor, quant_state: Any) -> Tensor:
    return weight.new_empty(quant_state.shape, dtype=torch.get_autocast_dtype(weight.device.type))


@contextlib.contextmanager
def products() -> Iterator[None]:
    """Products of such layers."""
    import bitsandbytes

    with (
        patch.object(bitsandbytes, "matmul_4bit", _matmul),
        patch.object(bitsandbytes.functional, "dequantize_4bit", _dequantized),
    ):
        yield
