"""Layers of pipeline stages are those that megatron-core builds, and what it refuses is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.planning.layer_split import layers_by_stage, split_problem


def theirs(layers: int, split: ParallelSpec) -> list[list[int]] | None:
    """megatron-core's own count of each chunk; None where it refuses."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig

    chunks = split.virtual_pipeline if split.virtual_pipeline > 1 else None
    try:
        config = TransformerConfig(
            num_layers=layers,
            hidden_size=8,
            num_attention_heads=1,
            pipeline_model_parallel_size=split.pipeline,
            virtual_pipeline_model_parallel_size=chunks,
            num_layers_in_first_pipeline_stage=split.first_stage_layers,
            num_layers_in_last_pipeline_stage=split.last_stage_layers,
            account_for_embedding_in_pipeline_split=split.account_for_embedding,
            account_for_loss_in_pipeline_split=split.account_for_loss,
            pipeline_dtype="fp32",  # asked for, not used
        )
        return [
            [get_num_layers_to_build(config, chunk, stage) for chunk in ([None] if chunks is None else range(chunks))]
            for stage in range(split.pipeline)
        ]
    except (AssertionError, ValueError, TypeError, ZeroDivisionError):
        return None


def drawn(draw: random.Random) -> tuple[int, ParallelSpec]:
    split = ParallelSpec(1, draw.choice([1, 2, 2, 3, 4, 8]), 1, 8, 1, 8)
    changes: dict[str, Any] = {"virtual_pipeline": draw.choice([1, 1, 1, 2, 3])}
    if draw.random() < 0.4:
        changes["first_stage_layers"] = draw.randrange(1, 7)
    if draw.random() < 0.3:
        changes["last_stage_layers"] = draw.randrange(1, 7)
    if draw.random() < 0.3:
        changes["account_for_embedding"] = draw.random() < 0.7
        changes["account_for_loss"] = draw.random() < 0.7
    return draw.choice([4, 6, 7, 8, 12, 14, 15, 16, 22, 24, 30, 32]), replace(split, **changes)


@pytest.mark.filterwarnings("ignore")
def test_three_thousand_splits() -> None:
    draw, both = random.Random(5), 0
    for _ in range(3000):
        layers, split = drawn(draw)
        problem, counts = split_problem(layers, split), theirs(layers, split)
        if problem is None:
            assert counts is not None, (layers, split)
            assert layers_by_stage(layers, split) == counts, (layers, split)
            assert sum(map(sum, counts)) == layers
            both += 1
        elif counts is not None:
            # taken there: stages that do not make up the model, keys without effect, a chunk of no layers
            whole = sum(map(sum, counts)) == layers
            assert not whole or split.pipeline == 1 or min(map(min, counts)) < 1, (layers, split, counts, problem)
    assert both > 500


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_layer_is_in_one_stage(stages: int) -> None:
    split = ParallelSpec(1, stages, 1, stages, 1, stages)
    assert layers_by_stage(8, split) == [[8 // stages]] * stages
