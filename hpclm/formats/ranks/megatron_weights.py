"""Tensors of a checkpoint of Megatron-LM (`torch_dist`) as those of hpclm's, which have megatron-core's names too.

There the layers of a model, and the experts of a layer, are one tensor each, stacked along its first axes.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.formats.megatron.distributed_index import Part, Whole, read_index

_LAYERS, _EXPERTS = "decoder.layers.", "mlp.experts.experts."
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


class MegatronWeights:
    """The weights of a folder, each of hpclm's tensors read when it is asked for. Raises CheckpointError.

    Attributes:
        sources: of each of hpclm's tensors the stored one, and the place in its first axes.
    """

    def __init__(self, folder: Path, model: ModelSpec) -> None:
        self.folder, self.model = folder, model
        self.stored = read_index(folder)
        self.sources: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, whole in self.stored.items():
            self.sources.update(self._own(name, whole))

    def _own(self, name: str, whole: Whole) -> dict[str, tuple[str, tuple[int, ...]]]:
        """hpclm's tensors that a stored one holds."""
        if not name.startswith(_LAYERS):
            return {name: (name, ())}
        rest = name.removeprefix(_LAYERS)
        number, _, inner = rest.partition(".")
        if number.isdecimal():
            places: list[tuple[str, str, tuple[int, ...]]] = [(number, inner, ())]
        else:
            if whole.shape[:1] != (self.model.num_layers,):
                raise CheckpointError(
                    f"{self.folder}: {name} has {whole.shape[:1]} layers, not {self.model.num_layers}"
                )
            places = [(str(layer), rest, (layer,)) for layer in range(whole.shape[0])]
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for layer, part, place in places:
            if part.startswith(_EXPERTS):
                tail = part.removeprefix(_EXPERTS)
                for expert in range(self.model.num_moe_experts or 0):
                    found[f"{_LAYERS}{layer}.mlp.experts.{expert}.{tail}"] = name, (*place, expert)
            else:
                found[f"{_LAYERS}{layer}.{self._norm(part)}"] = name, place
        return found

    def _norm(self, part: str) -> str:
        """A layer's norms as hpclm calls them: as Transformer Engine does, which has them in the linear layers."""
        if part.startswith("input_layernorm."):
            return part.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        before, inside = "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"
        if self.model.num_moe_experts is not None:
            return part.replace(inside, before)
        return part.replace(before, inside)

    def shape(self, name: str) -> tuple[int, ...]:
        stored, place = self.sources[name]
        sizes = self.stored[stored].shape[len(place) :]
        return (self.model.vocab_size, *sizes[1:]) if name in _VOCABULARY else sizes

    def dtype(self, name: str) -> torch.dtype:
        named = self.stored[self.sources[name][0]].dtype
        found = getattr(torch, named, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise CheckpointError(f"{self.folder}: {name} is {named}; it must be a float")
        return found

    def tensor(self, name: str) -> Tensor:
        """The whole tensor, the vocabulary without padding."""
        heartbeat.beat()
        stored, place = self.sources[name]
        whole = self.stored[stored]
        made = torch.empty(whole.shape[len(place) :], dtype=self.dtype(name))
        for part in whole.parts:
            ends = zip(part.offsets, part.sizes, place, strict=False)
            if not all(first <= wanted < first + size for first, size, wanted in ends):
                continue
            inner = tuple(wanted - first for wanted, first in zip(place, part.offsets, strict=False))
            rest = zip(part.offsets[len(place) :], part.sizes[len(place) :], strict=True)
            made[tuple(slice(first, first + size) for first, size in rest)] = self._read(part)[inner]
        return made[: self.model.vocab_size] if name in _VOCABULARY else made

    def _read(self, part: Part) -> Tensor:
        path = self.folder / part.file
        with path.open("rb") as file:
            file.seek(part.start)
            content = io.BytesIO(file.read(part.length))
        try:
            found = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:  # of several kinds where the bytes are damaged
            raise CheckpointError(f"{path}: cannot be read at byte {part.start} ({type(error).__name__})") from None
        if not isinstance(found, Tensor) or tuple(found.shape) != part.sizes:
            raise CheckpointError(f"{path}: what is at byte {part.start} is not the tensor that the index names")
        return found.detach()
