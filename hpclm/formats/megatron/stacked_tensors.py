"""Tensors of megatron-core's distributed checkpoints as hpclm's: there the layers of a model, and the experts of a
layer, are one tensor each, stacked along its first axes.

Source: megatron-core 0.16.1, transformer/transformer_block.py and transformer/moe/experts.py, sharded_state_dict.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from hpclm.core.errors import CheckpointError
from hpclm.formats.stored_weights import Piece, Weight
from hpclm.formats.torch_pickles import TensorFacts

LAYERS, EXPERTS = "decoder.layers.", "mlp.experts.experts."
_MOST = 1 << 20


def unstacked(tensors: dict[str, Weight]) -> dict[str, Weight]:
    """A tensor for each layer and expert, under hpclm's names. Raises CheckpointError."""
    experts = any(EXPERTS in name for name in tensors)
    found: dict[str, Weight] = {}
    for name, weight in tensors.items():
        for ours, place in _own(name, weight.shape, experts=experts):
            found[ours] = weight if not place else Weight(weight.shape[len(place) :], weight.dtype)
        _share(name, weight, found, experts=experts)
    return found


def layer_tensor(part: str, *, experts: bool) -> str:
    """A tensor of a layer as hpclm calls it: norms as Transformer Engine does, which has them in the linear layers."""
    if part.startswith("input_layernorm."):
        return part.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
    before, inside = "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"
    return part.replace(inside, before) if experts else part.replace(before, inside)


def _split(name: str, shape: tuple[int, ...]) -> tuple[str | None, str, int]:
    """The layer's number, if it is in the name; the tensor's name in a layer; how many axes are stacked."""
    number, _, inner = name.removeprefix(LAYERS).partition(".")
    layer, part = (number, inner) if number.isdecimal() else (None, name.removeprefix(LAYERS))
    axes = (layer is None) + part.startswith(EXPERTS)
    if len(shape) <= axes:
        raise CheckpointError(f"{name}: its shape {shape} has no axis for its layers and experts")
    return layer, part, axes


def _own(name: str, shape: tuple[int, ...], *, experts: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """hpclm's tensors that a stored one holds, and their places in its first axes."""
    if not name.startswith(LAYERS):
        yield name, ()
        return
    layer, part, axes = _split(name, shape)
    if any(size > _MOST for size in shape[:axes]):
        raise CheckpointError(f"{name}: has {shape[:axes]} layers and experts")
    for place in itertools.product(*map(range, shape[:axes])):
        yield _called(layer, part, place, experts=experts), place


def _called(layer: str | None, part: str, place: tuple[int, ...], *, experts: bool) -> str:
    number = layer if layer is not None else str(place[0])
    if part.startswith(EXPERTS):
        return f"{LAYERS}{number}.mlp.experts.{place[-1]}.{part.removeprefix(EXPERTS)}"
    return f"{LAYERS}{number}.{layer_tensor(part, experts=experts)}"


def _share(name: str, weight: Weight, found: dict[str, Weight], *, experts: bool) -> None:
    """Give each of hpclm's tensors its part of the stored one's pieces."""
    if not name.startswith(LAYERS):
        return
    layer, part, axes = _split(name, weight.shape)
    if not axes:
        return
    for piece in weight.pieces:
        for inside in itertools.product(*map(range, piece.shape[:axes])):
            place = tuple(first + number for first, number in zip(piece.offset, inside, strict=False))
            facts = functools.partial(_inner, piece, inside)
            target = found[_called(layer, part, place, experts=experts)]
            target.pieces.append(Piece(piece.offset[axes:], piece.shape[axes:], facts))


def _inner(piece: Piece, place: tuple[int, ...]) -> TensorFacts:
    return piece.facts().inner(place)
