"""Gated activations that keep less are to the bit what megatron-core's own give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpclm.engines.megatron.ranks.gated import Gate
from hpclm.engines.megatron.ranks.gpt_model import gelu


@pytest.mark.parametrize("activation", [torch.nn.functional.silu, torch.nn.functional.relu, gelu])
def test_a_gate_gives_the_same_bits_and_keeps_its_input_alone(activation: Any) -> None:
    torch.manual_seed(1)
    ours = torch.randn(3, 2, 16, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = Gate(SimpleNamespace(activation_func=activation))(ours)
    gate, linear = theirs.chunk(2, dim=-1)
    # megatron/core/transformer/mlp.py, glu
    expected = activation(gate) * (linear + 0.0)
    assert torch.equal(made, expected)
    gradient = torch.randn_like(made)
    made.backward(gradient)  # type: ignore[no-untyped-call]
    expected.backward(gradient)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert [tensor.data_ptr() for tensor in kept] == [ours.data_ptr()]
