"""Weights of other tools' files, read straight into a rank's shards: without another copy, and only the needed parts of
the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.formats.archive import Archive
from hpclm.formats.megatron import model_weights as megatron
from hpclm.formats.nemo.gpt_weights import is_archive, read_weights
from hpclm.formats.ranks.checkpoint_store import overlap
from hpclm.formats.ranks.tensor_shard import Shard
from hpclm.formats.stored_weights import Weight
from hpclm.formats.torch_pickles import TensorFacts


@contextmanager
def _opened(path: Path, model: ModelSpec) -> Iterator[tuple[Archive, Mapping[str, Weight]]]:
    """The tensors of a GPT archive of NeMo, or of a checkpoint of Megatron-LM."""
    if is_archive(str(path)):
        with Archive(path) as archive:
            yield archive, read_weights(archive, model.num_attention_heads, gated=model.gated)
        return
    with Archive(megatron.iteration_folder(path) or path) as archive:
        yield archive, megatron.read_weights(archive, model)


def load_gpt(path: Path, shards: Iterable[Shard], model: ModelSpec) -> None:
    """Fill `shards` in place from a model of any split, cast to their dtype.

    Raises CheckpointError where a tensor is missing, of another shape, or incomplete.
    """
    with _opened(path, model) as (archive, weights):
        for shard in shards:
            weight = weights.get(shard.key)
            if weight is None:
                raise CheckpointError(f"{path}: contains no {shard.key}, which its configuration requires")
            if weight.shape != tuple(shard.global_shape) and not shard.allow_shape_mismatch:
                raise CheckpointError(
                    f"{path}: {shard.key} has shape {weight.shape}, its configuration "
                    f"requires {tuple(shard.global_shape)}"
                )
            _fill(archive, shard, weight)


@torch.no_grad()
def _fill(archive: Archive, shard: Shard, weight: Weight) -> None:
    heartbeat.beat()
    if shard.allow_shape_mismatch:
        shard.data.zero_()
    filled = 0
    for piece in weight.pieces:
        found = overlap(shard.global_offset, shard.local_shape, list(piece.offset), list(piece.shape))
        if found is not None:
            ours, theirs = found
            part = tensor_of(archive, piece.facts())[theirs]
            shard.data[ours].copy_(part)
            filled += part.numel()
    if filled != shard.data.numel() and not shard.allow_shape_mismatch:
        raise CheckpointError(f"{archive.path}: {shard.key}: {filled} of {shard.data.numel()} values found")


def whole_tensor(archive: Archive, weight: Weight) -> Tensor:
    """All of a tensor, in its own dtype."""
    heartbeat.beat()
    made = torch.empty(weight.shape, dtype=getattr(torch, weight.dtype))
    for piece in weight.pieces:
        sizes = zip(piece.offset, piece.shape, strict=True)
        made[tuple(slice(first, first + size) for first, size in sizes)] = tensor_of(archive, piece.facts())
    return made


def tensor_of(archive: Archive, facts: TensorFacts) -> Tensor:
    """A stored tensor as a view of the file: only the pages that are used are read."""
    dtype = getattr(torch, facts.dtype)
    if not facts.numel:
        return torch.empty(facts.shape, dtype=dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(facts.shape, facts.strides, strict=True))
    flat = torch.frombuffer(archive.map(facts.member), dtype=dtype, count=span, offset=facts.start)
    return flat.as_strided(facts.shape, facts.strides)
