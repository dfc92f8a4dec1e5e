"""Which pipeline stage, and which of its chunks under the interleaved schedule, has how many layers.

Source: megatron-core core_r0.16.0, transformer/transformer_block.py (get_num_layers_to_build) and
transformer/transformer_config.py (__post_init__).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Split(Protocol):
    """Of a recipe's `parallel` or a spec's (see `ParallelSpec`)."""

    @property
    def pipeline(self) -> int: ...
    @property
    def virtual_pipeline(self) -> int: ...
    @property
    def first_stage_layers(self) -> int | None: ...
    @property
    def last_stage_layers(self) -> int | None: ...
    @property
    def account_for_embedding(self) -> bool: ...
    @property
    def account_for_loss(self) -> bool: ...


@dataclass(frozen=True)
class Problem:
    """Why layers cannot be divided so. `key`: of `parallel`, the one to change."""

    key: str
    what: str
    rule: str


def layers_by_stage(layers: int, split: Split) -> list[list[int]]:
    """The layers of each chunk of each pipeline stage, of a split without a problem; the nearest to it of others.

    The embedding and the output layer, where they count as a layer, are in the first and the last chunk.
    """
    return [layers_of_stage(layers, split, stage) for stage in range(split.pipeline)]


def layers_of_stage(layers: int, split: Split, stage: int) -> list[int]:
    """The layers of each chunk of one pipeline stage."""
    chunks, last = split.virtual_pipeline, split.pipeline - 1
    count = _each(layers, split) or 0
    if stage == 0 and split.first_stage_layers is not None:
        count = split.first_stage_layers
    if stage == last and split.last_stage_layers is not None:
        count = split.last_stage_layers
    found = [count // chunks] * chunks
    found[0] -= split.account_for_embedding and stage == 0
    found[-1] -= split.account_for_loss and stage == last
    return [max(0, one) for one in found]


def _each(layers: int, split: Split) -> int | None:
    """Layers of a stage that has as many as the others, None where there is none."""
    written = [one for one in (split.first_stage_layers, split.last_stage_layers) if one is not None]
    others = split.pipeline - len(written)
    left = layers - sum(written) + split.account_for_embedding + split.account_for_loss
    return left // others if others > 0 else None


def split_problem(layers: int, split: Split) -> Problem | None:
    """What megatron-core would refuse, or do otherwise than asked."""
    counted = next((key for key in ("account_for_embedding", "account_for_loss") if getattr(split, key)), None)
    written = [key for key in ("first_stage_layers", "last_stage_layers") if getattr(split, key) is not None]
    if counted and written:
        return Problem(counted, f"does not go with {written[0]}; keep one", "one way to divide the layers")
    if split.pipeline == 1:
        for key in (*written, *(["virtual_pipeline"] * (split.virtual_pipeline > 1))):
            return Problem(key, "divides layers over pipeline stages, and there is one; leave it out", "pipeline > 1")
        return None
    return _uneven(layers, split, written) or _evenly(layers, split, counted, written) or _chunks(layers, split)


def _uneven(layers: int, split: Split, written: list[str]) -> Problem | None:
    if not written:
        return None
    others, left = split.pipeline - len(written), layers - sum(getattr(split, key) for key in written)
    what = None
    if others == 0 and left:
        what = f"and last_stage_layers have {layers - left} of {layers} layers; they must add up"
    elif others and (left < others or left % others):
        what = f"leaves {max(0, left)} layers for the other {others} pipeline stages; each needs as many"
    return None if what is None else Problem(written[0], what, "layers of the other stages")


def _evenly(layers: int, split: Split, counted: str | None, written: list[str]) -> Problem | None:
    total = layers + split.account_for_embedding + split.account_for_loss
    if written or not total % split.pipeline:
        return None
    rule = "layers % pipeline == 0"
    if counted is None:
        return Problem("pipeline", f"{split.pipeline} does not divide num_layers {layers}", rule)
    return Problem(counted, f"makes {total} layers for pipeline {split.pipeline}, which does not divide them", rule)


def _chunks(layers: int, split: Split) -> Problem | None:
    each = _each(layers, split)
    counts = {one for one in (split.first_stage_layers, split.last_stage_layers, each) if one is not None}
    wrong = next((count for count in sorted(counts) if count % split.virtual_pipeline), None)
    if wrong is None:
        return None
    what = f"{split.virtual_pipeline} does not divide the {wrong} layers of a pipeline stage"
    return Problem("virtual_pipeline", what, "layers of a stage % virtual_pipeline == 0")
