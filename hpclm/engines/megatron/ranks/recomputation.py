"""Activation checkpointing: what megatron-core's needs here."""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

from hpclm.core.parallel_spec import RecomputeSpec


def install() -> None:
    """Let results of norms be recomputed without Transformer Engine: megatron-core (0.16.1) takes its own default,
    fp8=False, for a precision, and asks Transformer Engine for it."""
    CheckpointWithoutOutput.__init__.__defaults__ = (None,)


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
