"""Activation checkpointing: what megatron-core's needs here."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from torch import Tensor, nn

from hpclm.core.parallel_spec import RecomputeSpec


def install() -> None:
    """Let results of norms be recomputed without Transformer Engine: megatron-core (0.16.1) takes its own default,
    fp8=False, for a precision, and asks Transformer Engine for it."""
    CheckpointWithoutOutput.__init__.__defaults__ = (None,)


def copy_biases(gpt: GPTModel) -> None:
    """Let MLPs whose layers have biases be recomputed: a parallel MLP gives its last bias back beside its result, to
    be added later, and a checkpoint makes all that passes through it a result of its own. The weight itself would then
    be no leaf any more, and the backward pass without end (megatron-core 0.16.1, CheckpointFunction); a copy may."""
    for layer in gpt.decoder.layers:
        if layer.recompute_mlp:
            layer.mlp.register_forward_hook(_copied)


def _copied(_: nn.Module, __: Any, result: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    states, bias = result
    return states, None if bias is None else bias.clone()


def settings(wanted: RecomputeSpec | None) -> dict[str, Any]:
    """Keys of megatron-core's TransformerConfig."""
    if wanted is None:
        return {"recompute_granularity": None}
    return {
        "recompute_granularity": wanted.granularity,
        "recompute_method": wanted.method,
        "recompute_num_layers": wanted.num_layers,
        "recompute_modules": sorted(wanted.recomputed) or None,
    }
