"""NeMo 1.x GPT archives: the architecture, and the location of each piece of each of megatron-core's tensors.

Layout (NeMo r1.13 to r1.22, nemo/collections/nlp/parts/nlp_overrides.py, NLPSaveRestoreConnector): model_config.yaml
and model_weights.ckpt; at tensor parallel alone mp_rank_RR/model_weights.ckpt; at pipeline parallel
tp_rank_RR_pp_rank_RRR/model_weights.ckpt, layers counted from 0 in each. Tensors are named as in
nemo/collections/nlp/modules/common/megatron/language_model.py, with transformer_engine as in Transformer Engine's
TransformerLayer, and with mcore_gpt as in megatron-core. `zarr_weights` has the layout of distributed checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hpclm.core.errors import CheckpointError
from hpclm.formats.format_guard import guarded
from hpclm.formats.nemo.archive import Archive, Member
from hpclm.formats.nemo.pickles import TensorFacts, read_index
from hpclm.formats.nemo.zarr_weights import has_arrays, stored_tensors

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_PLACE = re.compile(r"(?:^|/)(?:mp_rank_(?P<only>\d{1,4})|tp_rank_(?P<tensor>\d{1,4})_pp_rank_(?P<pipe>\d{1,4}))/")
_LAYER = re.compile(r"(?:encoder|decoder)\.layers\.(\d{1,4})\.(.+)")
_COLUMN, _ROW, _WHOLE = 0, 1, None
# NeMo's name within a layer: megatron-core's in a checkpoint (a norm under the layer it goes into), and the axis that
# tensor ranks share.
_LAYER_NAMES = {
    "input_layernorm.weight": ("self_attention.linear_qkv.layer_norm_weight", _WHOLE),
    "input_layernorm.bias": ("self_attention.linear_qkv.layer_norm_bias", _WHOLE),
    "self_attention.query_key_value.weight": ("self_attention.linear_qkv.weight", _COLUMN),
    "self_attention.query_key_value.bias": ("self_attention.linear_qkv.bias", _COLUMN),
    "self_attention.dense.weight": ("self_attention.linear_proj.weight", _ROW),
    "self_attention.dense.bias": ("self_attention.linear_proj.bias", _WHOLE),
    "post_attention_layernorm.weight": ("mlp.linear_fc1.layer_norm_weight", _WHOLE),
    "post_attention_layernorm.bias": ("mlp.linear_fc1.layer_norm_bias", _WHOLE),
    "mlp.dense_h_to_4h.weight": ("mlp.linear_fc1.weight", _COLUMN),
    "mlp.dense_h_to_4h.bias": ("mlp.linear_fc1.bias", _COLUMN),
    "mlp.dense_h_to_4h_2.weight": ("mlp.linear_fc1.weight", _COLUMN),
    "mlp.dense_h_to_4h_2.bias": ("mlp.linear_fc1.bias", _COLUMN),
    "mlp.dense_4h_to_h.weight": ("mlp.linear_fc2.weight", _ROW),
    "mlp.dense_4h_to_h.bias": ("mlp.linear_fc2.bias", _WHOLE),
}
# The same of Transformer Engine's layers (encoder.layers.N of a model with transformer_engine).
_ENGINE_NAMES = {
    "self_attention.layernorm_qkv.layer_norm_weight": ("self_attention.linear_qkv.layer_norm_weight", _WHOLE),
    "self_attention.layernorm_qkv.layer_norm_bias": ("self_attention.linear_qkv.layer_norm_bias", _WHOLE),
    "self_attention.layernorm_qkv.weight": ("self_attention.linear_qkv.weight", _COLUMN),
    "self_attention.layernorm_qkv.bias": ("self_attention.linear_qkv.bias", _COLUMN),
    "self_attention.proj.weight": ("self_attention.linear_proj.weight", _ROW),
    "self_attention.proj.bias": ("self_attention.linear_proj.bias", _WHOLE),
    "layernorm_mlp.layer_norm_weight": ("mlp.linear_fc1.layer_norm_weight", _WHOLE),
    "layernorm_mlp.layer_norm_bias": ("mlp.linear_fc1.layer_norm_bias", _WHOLE),
    "layernorm_mlp.fc1_weight": ("mlp.linear_fc1.weight", _COLUMN),
    "layernorm_mlp.fc1_bias": ("mlp.linear_fc1.bias", _COLUMN),
    "layernorm_mlp.fc2_weight": ("mlp.linear_fc2.weight", _ROW),
    "layernorm_mlp.fc2_bias": ("mlp.linear_fc2.bias", _WHOLE),
}
# And of megatron-core's, which has its norms in the layers they go into (with Transformer Engine) or beside them.
_CORE_NAMES = {
    **{ours: (ours, axis) for ours, axis in _LAYER_NAMES.values()},
    "pre_mlp_layernorm.weight": ("mlp.linear_fc1.layer_norm_weight", _WHOLE),
    "pre_mlp_layernorm.bias": ("mlp.linear_fc1.layer_norm_bias", _WHOLE),
}
_ANY_LAYER = {**_CORE_NAMES, **_ENGINE_NAMES, **_LAYER_NAMES}
_OTHER_NAMES = {
    "embedding.word_embeddings.weight": ("embedding.word_embeddings.weight", _COLUMN),
    "embedding.position_embeddings.weight": ("embedding.position_embeddings.weight", _WHOLE),
    "encoder.final_layernorm.weight": ("decoder.final_layernorm.weight", _WHOLE),
    "encoder.final_layernorm.bias": ("decoder.final_layernorm.bias", _WHOLE),
    "decoder.final_layernorm.weight": ("decoder.final_layernorm.weight", _WHOLE),
    "decoder.final_layernorm.bias": ("decoder.final_layernorm.bias", _WHOLE),
    "output_layer.weight": ("output_layer.weight", _COLUMN),
}
# Tied: the last stage's copy of the word embeddings. Others hold no weights.
_IGNORED = ("word_embeddings.weight", "rotary_pos_emb.inv_freq", "rotary_emb.inv_freq")


def nemo_name(key: str) -> str:
    """NeMo's name of a tensor at tensor and pipeline parallel 1, from megatron-core's in a checkpoint."""
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", key)
    if layer:
        names = {ours: theirs for theirs, (ours, _) in reversed(_LAYER_NAMES.items())}
        return f"model.language_model.encoder.layers.{layer[1]}.{names[layer[2]]}"
    others = {ours: theirs for theirs, (ours, _) in reversed(_OTHER_NAMES.items())}
    return f"model.language_model.{others[key]}"


@dataclass(frozen=True)
class Piece:
    """Some rows of a stored tensor, and their target.

    Attributes:
        rows: (first, count) in the stored tensor; offset: where they begin in the whole one, an index an axis.
    """

    tensor: TensorFacts
    rows: tuple[int, int]
    offset: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows[1], *self.tensor.shape[1:])


@dataclass
class Weight:
    """One of megatron-core's tensors, whole: its shape, and its pieces."""

    shape: tuple[int, ...]
    dtype: str
    pieces: list[Piece] = field(default_factory=list)


def is_archive(path: str) -> bool:
    """Whether a path is a .nemo archive, packed or unpacked (decided by the files)."""
    from pathlib import Path

    place = Path(path)
    if place.is_dir():
        return (place / CONFIG).is_file()
    return place.is_file() or path.endswith(".nemo")


@guarded("a NeMo GPT model")
def read_weights(archive: Archive, heads: int, *, gated: bool) -> dict[str, Weight]:
    """Every tensor of the model under megatron-core's name. Raises CheckpointError for missing and for unknown tensors.

    Args:
        heads: attention heads of the model, to reorder the rows of query, key and value where NeMo uses the order of
            Megatron-LM's first versions (`megatron_legacy`).
        gated: whether the MLP's first layer includes a gate.
    """
    if has_arrays(archive):
        return _of_arrays(archive)
    shards = dict(_shards(archive))
    tensor = 1 + max(place[0] for place in shards)
    pipeline = 1 + max(place[1] for place in shards)
    if len(shards) < tensor * pipeline:
        missing = next((t, p) for t in range(tensor) for p in range(pipeline) if (t, p) not in shards)
        raise CheckpointError(
            f"{archive.path}: the weights of tensor rank {missing[0]}, pipeline rank {missing[1]} are missing "
            f"({len(shards)} of {tensor} × {pipeline} found); copy the archive again"
        )
    weights: dict[str, Weight] = {}
    first = 0
    for pipe in range(pipeline):
        count = 0
        for rank in range(tensor):
            found = _named(archive, shards[rank, pipe])
            stored = _Stored(archive, heads, gated, is_legacy(archive), any("h_to_4h_2" in name for name in found))
            for name, facts in found.items():
                layer = _LAYER.fullmatch(name)
                count = max(count, int(layer[1]) + 1) if layer else count
                stored.place(weights, name, facts, (rank, tensor), first)
        first += count
    return weights


def _of_arrays(archive: Archive) -> dict[str, Weight]:
    """Tensors of a distributed checkpoint are whole, and in megatron-core's order whatever the archive's split was."""
    weights: dict[str, Weight] = {}
    for name, shape, dtype, parts in stored_tensors(archive):
        layer = _LAYER.fullmatch(name)
        known = _CORE_NAMES.get(layer[2]) if layer else _OTHER_NAMES.get(name)
        if known is None:
            raise _unknown(archive, name)
        key = f"decoder.layers.{layer[1]}.{known[0]}" if layer else known[0]
        if key in weights:
            raise CheckpointError(f"{archive.path}: contains {key} twice")
        weights[key] = Weight(shape, dtype, [Piece(facts, (0, facts.shape[0]), place) for facts, place in parts])
    return weights


def _unknown(archive: Archive, name: str) -> CheckpointError:
    return CheckpointError(
        f"{archive.path}: contains {name!r}, which hpclm does not support; GPT models of NeMo 1.x can be read"
    )


def is_legacy(archive: Archive) -> bool:
    """Whether query, key and value are stored one after the other for all heads, rather than head by head."""
    member = archive.find(CONFIG)
    return bool(member and re.search(rb"(?m)^megatron_legacy:\s*[Tt]rue\s*$", archive.read(member)))


def _shards(archive: Archive) -> Iterator[tuple[tuple[int, int], Member]]:
    """(tensor rank, pipeline rank) and member of every weights file."""
    found = False
    for name, member in archive.members.items():
        if name.rpartition("/")[2] != WEIGHTS:
            continue
        place = _PLACE.search(name)
        found = True
        if place is None:
            yield (0, 0), member
        elif place["only"] is not None:
            yield (int(place["only"]), 0), member
        else:
            yield (int(place["tensor"]), int(place["pipe"])), member
    if not found and any(name.endswith((".distcp", "common.pt")) for name in archive.members):
        raise CheckpointError(
            f"{archive.path}: its weights are a distributed checkpoint (torch_dist), which hpclm does not "
            "read; save the model with NeMo to an archive without one"
        )
    if not found:
        raise CheckpointError(f"{archive.path}: contains no {WEIGHTS}; it is not a NeMo 1.x model")


def _named(archive: Archive, member: Member) -> dict[str, TensorFacts]:
    """A file's tensors under NeMo's names from `language_model.` on."""
    index = read_index(archive, member)
    if not isinstance(index, dict):
        raise CheckpointError(f"{archive.path}: {member.name}: not a dictionary of tensors")
    found = {}
    for name, facts in index.items():
        if isinstance(name, str) and isinstance(facts, TensorFacts):
            found[name.removeprefix("model.").removeprefix("module.").removeprefix("language_model.")] = facts
    if not found:
        raise CheckpointError(f"{archive.path}: {member.name}: contains no tensors")
    return found


@dataclass(frozen=True)
class _Stored:
    """How the archive's tensors are laid out. `two`: a gated MLP has its gate in a separate tensor."""

    archive: Archive
    heads: int
    gated: bool
    legacy: bool
    two: bool

    def place(
        self, weights: dict[str, Weight], name: str, facts: TensorFacts, rank: tuple[int, int], first_layer: int
    ) -> None:
        """Add a stored tensor to the whole one that it is a part of. `rank`: its tensor rank, and their number."""
        if name in _IGNORED or name.endswith("_extra_state"):
            return
        layer = _LAYER.fullmatch(name)
        known = _ANY_LAYER.get(layer[2]) if layer else _OTHER_NAMES.get(name)
        if known is None:
            raise _unknown(self.archive, name)
        key, axis = known
        key = f"decoder.layers.{first_layer + int(layer[1])}.{key}" if layer else key
        if axis is _WHOLE and rank[0]:
            return  # every tensor rank has the same
        shape, pieces = self._pieces(name, key, facts, axis, rank)
        weight = weights.setdefault(key, Weight(shape, facts.dtype))
        if weight.shape != shape:
            raise CheckpointError(
                f"{self.archive.path}: {name} is {shape} in one file and {weight.shape} in another; it is damaged"
            )
        weight.pieces += pieces

    def _pieces(
        self, name: str, key: str, facts: TensorFacts, axis: int | None, rank: tuple[int, int]
    ) -> tuple[tuple[int, ...], list[Piece]]:
        number, size = rank
        rest = (0,) * (len(facts.shape) - 1)
        if self.legacy and key.endswith(("linear_qkv.weight", "linear_qkv.bias")):
            return _head_by_head(facts, number, size, self.heads)
        if not (self.gated and key.endswith(("linear_fc1.weight", "linear_fc1.bias"))):
            return _plain(facts, axis, number, size)
        # megatron-core's whole tensor has all of the gate's rows first, then all of the others
        rows = facts.shape[0] if self.two else facts.shape[0] // 2
        shape = (2 * rows * size, *facts.shape[1:])
        if self.two:
            half = rows * size if "h_to_4h_2" in name else 0
            return shape, [Piece(facts, (0, rows), (half + number * rows, *rest))]
        halves = ((0, number * rows), (rows, (size + number) * rows))
        return shape, [Piece(facts, (start, rows), (offset, *rest)) for start, offset in halves]


def _plain(facts: TensorFacts, axis: int | None, number: int, size: int) -> tuple[tuple[int, ...], list[Piece]]:
    shape, offset = list(facts.shape), [0] * len(facts.shape)
    if axis is not None:
        shape[axis] *= size
        offset[axis] = number * facts.shape[axis]
    return tuple(shape), [Piece(facts, (0, facts.shape[0]), tuple(offset))]


def _head_by_head(facts: TensorFacts, number: int, size: int, heads: int) -> tuple[tuple[int, ...], list[Piece]]:
    """[3, heads, width] rows, as Megatron-LM's first versions had them, to megatron-core's [heads, 3, width]."""
    own = heads // size
    width = facts.shape[0] // (3 * own)
    rest = (0,) * (len(facts.shape) - 1)
    pieces = [
        Piece(facts, ((part * own + head) * width, width), (((number * own + head) * 3 + part) * width, *rest))
        for head in range(own)
        for part in range(3)
    ]
    return (facts.shape[0] * size, *facts.shape[1:]), pieces
