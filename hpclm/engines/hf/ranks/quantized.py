"""Frozen linear layers in 4 bits (QLoRA: Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

A layer's weight is its numbers in NormalFloat 4, two a byte, and a scale for each block of 64, in 8 bits themselves
(double quantisation). It is dequantised for each product, to the type that is computed in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hpclm.core.errors import CheckpointError


def use_four_bits(model: Any) -> None:
    """Replace every linear layer but the output's. `model`: without weights yet (`hf_loading.empty_model`).

    Raises CheckpointError for a model without linear layers, as GPT-2, whose layers are of another kind.
    """
    output = model.get_output_embeddings()
    found = [
        (name, module) for name, module in model.named_modules() if type(module) is nn.Linear and module is not output
    ]
    if not found:
        raise CheckpointError(f"{type(model).__name__} has no linear layers that could be quantised")
    for name, module in found:
        made = _layer_class()(
            module.in_features, module.out_features, bias=module.bias is not None, compress_statistics=True,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        made.requires_grad_(False)
        made.train(module.training)
        made.support_avx512bf16_for_cpu = False  # it would compute in bf16 where fp32 is asked for
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made)
    model.is_loaded_in_4bit = True  # PEFT asks for it


def _layer_class() -> Any:
    """bitsandbytes' layer, whose weight may be divided by FSDP2 between passes."""
    import bitsandbytes

    class Linear4bit(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
        """The scales are the module's, for FSDP2 puts plain tensors in the weight's place."""

        def forward(self, states: Tensor) -> Tensor:
            made: Tensor = bitsandbytes.matmul_4bit(states, self.weight, bias=self.bias, quant_state=self.quant_state)
            return made

    return Linear4bit


def told_by_divided(block: nn.Module) -> None:
    """After FSDP2 has divided a block: its weights tell again how they were packed, which PEFT asks."""
    for module in block.modules():
        state = getattr(module, "quant_state", None)
        if state is not None:
            module.weight.compress_statistics, module.weight.quant_type = state.nested, state.quant_type  # type: ignore[union-attr]


def is_packed(parameter: nn.Parameter) -> bool:
    """Whether `packed` makes its values."""
    return hasattr(parameter, "quant_type")


def packed(parameter: Any, value: Tensor, device: torch.device) -> nn.Parameter:
    """The values of a parameter that `use_four_bits` has made, quantised on the device. `value`: [out, in]."""
    made = type(parameter)(
        value, requires_grad=False, compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type, blocksize=parameter.blocksize, quant_storage=parameter.quant_storage,
        module=parameter.module,
    )  # fmt: skip
    found: nn.Parameter = made.to(device)
    return found
