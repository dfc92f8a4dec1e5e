"""Tensors of transformers' models as those of hpclm's, and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.formats.huggingface.names import Source
from hpclm.formats.huggingface.weights import Stored, located
from hpclm.formats.ranks.tensor_shard import Shard


class HuggingFaceWeights:
    """The weights of a folder, each of hpclm's tensors read when it is asked for. Raises CheckpointError."""

    def __init__(self, folder: Path, model: ModelSpec) -> None:
        self.folder, self.model = folder, model
        self.sources = located(folder, model)
        # the types of safetensors leave its methods out
        self.open: dict[str, Any] = {}

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, the vocabulary without padding."""
        source, stored = self.sources[name]
        whole = joined(source, [self._read(one) for one in stored], self.model)
        return whole[: self.model.vocab_size] if source.vocabulary else whole

    def _read(self, stored: Stored) -> Tensor:
        path = self.folder / stored.file
        try:
            if stored.file not in self.open:
                self.open[stored.file] = safe_open(str(path), framework="pt")
            found: Tensor = self.open[stored.file].get_tensor(stored.name)
        except Exception as error:  # safetensors raises its own exceptions for a damaged file
            raise CheckpointError(f"{path}: cannot be read ({error}); it is damaged") from error
        return found


def load_gpt(folder: Path, shards: Iterable[Shard], model: ModelSpec) -> None:
    """Fill `shards` in place, cast to their dtype; one whole tensor is in memory at a time."""
    weights = HuggingFaceWeights(folder, model)
    latest: tuple[str, Tensor] | None = None
    for shard in shards:
        heartbeat.beat()
        if shard.key not in weights.sources:
            raise CheckpointError(f"{folder}: config.json describes no tensor {shard.key}")
        if latest is None or latest[0] != shard.key:
            latest = shard.key, weights.tensor(shard.key)
        _copy(shard, latest[1])


@torch.no_grad()
def _copy(shard: Shard, whole: Tensor) -> None:
    place = zip(shard.global_offset, shard.local_shape, strict=True)
    part = whole[tuple(slice(first, first + size) for first, size in place)]
    if part.shape != shard.data.shape:  # rows of padding
        shard.data.zero_()
    shard.data[tuple(slice(size) for size in part.shape)].copy_(part)


def joined(source: Source, parts: list[Tensor], model: ModelSpec) -> Tensor:
    """hpclm's tensor of transformers' ones."""
    if source.rule == "transposed":
        return parts[0].t()
    if source.rule == "fused_qkv":
        parts = list((parts[0].t() if parts[0].dim() == 2 else parts[0]).chunk(3))
    if source.rule in ("qkv", "fused_qkv"):
        groups = [part.reshape(model.num_query_groups, -1, *part.shape[1:]) for part in parts]
        return torch.cat(groups, dim=1).flatten(0, 1)
    return torch.cat(parts) if source.rule == "joined" else parts[0]


def parted(source: Source, whole: Tensor, model: ModelSpec) -> list[Tensor]:
    """transformers' tensors of hpclm's one: the reverse of `joined`."""
    if source.rule == "transposed":
        return [whole.t().contiguous()]
    if source.rule == "joined":
        return [part.contiguous() for part in whole.chunk(2)]
    if source.rule == "same":
        return [whole]
    width = model.kv_channels
    queries = width * model.num_attention_heads // model.num_query_groups
    groups = whole.view(model.num_query_groups, -1, *whole.shape[1:])
    split = torch.tensor_split(groups, [queries, queries + width], dim=1)
    parts = [part.flatten(0, 1).contiguous() for part in split]
    if source.rule == "qkv":
        return parts
    fused = torch.cat(parts)
    return [fused.t().contiguous() if fused.dim() == 2 else fused]
