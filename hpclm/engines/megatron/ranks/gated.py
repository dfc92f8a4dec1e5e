"""Gated activations (SwiGLU, GEGLU, ReGLU) that keep their input alone for the backward pass.

megatron-core's own gate keeps both halves of its input, the activated one and a copy of the other, and its fused one is
compiled, which needs a C compiler on the node. This one computes the activation a second time in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class Gate:
    """act(first half) · second half of the last axis, [..., 2·f] → [..., f]; act is the configuration's. No module,
    since megatron-core asks each of an MLP for its part of a checkpoint."""

    def __init__(self, config: TransformerConfig) -> None:
        self.activation = config.activation_func

    def __call__(self, states: Tensor) -> Tensor:
        gated: Tensor = _Gate.apply(states, self.activation)  # type: ignore[no-untyped-call]
        return gated


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(states)
        ctx.activation = activation
        gate, linear = states.chunk(2, dim=-1)
        return activation(gate) * linear

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        gate, linear = ctx.saved_tensors[0].chunk(2, dim=-1)
        with torch.enable_grad():
            inner = gate.detach().requires_grad_()
            activated = ctx.activation(inner)
        (of_gate,) = torch.autograd.grad(activated, inner, gradient * linear)
        return torch.cat([of_gate, gradient * activated.detach()], dim=-1), None
