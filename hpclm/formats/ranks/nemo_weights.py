"""Weights of NeMo archives, read straight into a rank's shards: without another copy,
and only the needed parts of the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.formats.nemo.archive import Archive
from hpclm.formats.nemo.gpt_weights import Piece, read_weights
from hpclm.formats.nemo.pickles import TensorFacts
from hpclm.formats.ranks.checkpoint_store import overlap
from hpclm.formats.ranks.tensor_shard import Shard


def load_gpt(path: Path, shards: Iterable[Shard], model: ModelSpec) -> None:
    """Fill `shards` in place from a GPT archive of any split, cast to their dtype.

    Raises CheckpointError where a tensor is missing, of another shape, or incomplete.
    """
    with Archive(path) as archive:
        weights = read_weights(archive, model.num_attention_heads, gated=model.gated)
        for shard in shards:
            weight = weights.get(shard.key)
            if weight is None:
                raise CheckpointError(f"{path}: contains no {shard.key}, which its configuration requires")
            if weight.shape != tuple(shard.global_shape) and not shard.allow_shape_mismatch:
                raise CheckpointError(
                    f"{path}: {shard.key} has shape {weight.shape}, its configuration "
                    f"requires {tuple(shard.global_shape)}"
                )
            _fill(archive, shard, weight.pieces)


@torch.no_grad()
def _fill(archive: Archive, shard: Shard, pieces: list[Piece]) -> None:
    heartbeat.beat()
    if shard.allow_shape_mismatch:
        shard.data.zero_()
    filled = 0
    for piece in pieces:
        found = overlap(shard.global_offset, shard.local_shape, list(piece.offset), list(piece.shape))
        if found is not None:
            ours, theirs = found
            part = tensor_of(archive, piece.tensor).narrow(0, *piece.rows)[theirs]
            shard.data[ours].copy_(part)
            filled += part.numel()
    if filled != shard.data.numel() and not shard.allow_shape_mismatch:
        raise CheckpointError(f"{archive.path}: {shard.key}: {filled} of {shard.data.numel()} values found")


def tensor_of(archive: Archive, facts: TensorFacts) -> Tensor:
    """A stored tensor as a view of the file: only the pages that are used are read."""
    dtype = getattr(torch, facts.dtype)
    if not facts.numel:
        return torch.empty(facts.shape, dtype=dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(facts.shape, facts.strides, strict=True))
    flat = torch.frombuffer(archive.map(facts.member), dtype=dtype, count=span, offset=facts.start)
    return flat.as_strided(facts.shape, facts.strides)
