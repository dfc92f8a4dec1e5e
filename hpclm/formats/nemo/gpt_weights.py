"""NeMo 1.x GPT archives: the architecture, and the location of each piece of each of megatron-core's tensors.

Layout (NeMo r1.13 to r1.22, nemo/collections/nlp/parts/nlp_overrides.py, NLPSaveRestoreConnector): model_config.yaml
and model_weights.ckpt; at tensor parallel alone mp_rank_RR/model_weights.ckpt; at pipeline parallel
tp_rank_RR_pp_rank_RRR/model_weights.ckpt, layers counted from 0 in each. Tensors are named as in
nemo/collections/nlp/modules/common/megatron/language_model.py, with transformer_engine as in Transformer Engine's
TransformerLayer, and with mcore_gpt as in megatron-core. `zarr_weights` and
formats/megatron/distributed_index.py have the layouts of distributed checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive, Member
from hpclm.formats.format_guard import guarded
from hpclm.formats.megatron.distributed_index import METADATA, stored_tensors
from hpclm.formats.megatron.expected_tensors import check_covered
from hpclm.formats.megatron.stacked_tensors import unstacked
from hpclm.formats.nemo.gpt_names import ANY_LAYER, CORE_NAMES, OTHER_NAMES
from hpclm.formats.nemo.zarr_weights import has_arrays, stored_arrays
from hpclm.formats.rank_parts import RankParts
from hpclm.formats.stored_weights import Piece, Weight
from hpclm.formats.torch_pickles import TensorFacts, read_index

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_PLACE = re.compile(r"(?:^|/)(?:mp_rank_(?P<only>\d{1,4})|tp_rank_(?P<tensor>\d{1,4})_pp_rank_(?P<pipe>\d{1,4}))/")
_LAYER = re.compile(r"(?:encoder|decoder)\.layers\.(\d{1,4})\.(.+)")
# Tied: the last stage's copy of the word embeddings. Others hold no weights.
_IGNORED = ("word_embeddings.weight", "rotary_pos_emb.inv_freq", "rotary_emb.inv_freq")


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
    if archive.find(METADATA) is not None:
        return _of_distributed(archive)
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
            two = any("h_to_4h_2" in name for name in found)
            parts = RankParts(archive, heads, gated=gated, legacy=is_legacy(archive), two=two)
            for name, facts in found.items():
                layer = _LAYER.fullmatch(name)
                count = max(count, int(layer[1]) + 1) if layer else count
                _place(parts, weights, name, facts, (rank, tensor), first)
        first += count
    return weights


def _of_arrays(archive: Archive) -> dict[str, Weight]:
    """Tensors of a distributed checkpoint are whole, and in megatron-core's order whatever the archive's split was."""
    weights: dict[str, Weight] = {}
    for name, shape, dtype, parts in stored_arrays(archive):
        layer = _LAYER.fullmatch(name)
        known = CORE_NAMES.get(layer[2]) if layer else OTHER_NAMES.get(name)
        if known is None:
            raise _unknown(archive, name)
        key = f"decoder.layers.{layer[1]}.{known[0]}" if layer else known[0]
        if key in weights:
            raise CheckpointError(f"{archive.path}: contains {key} twice")
        weights[key] = Weight(shape, dtype, [Piece.of(facts, place) for facts, place in parts])
    return weights


def _of_distributed(archive: Archive) -> dict[str, Weight]:
    """The same in megatron-core's later format, torch_dist."""
    stored = {name.removeprefix("model.").removeprefix("module."): one for name, one in stored_tensors(archive).items()}
    weights = unstacked(stored)
    for name in weights:
        layer = _LAYER.fullmatch(name)
        if (layer[2] not in CORE_NAMES) if layer else (name not in OTHER_NAMES):
            raise _unknown(archive, name)
        check_covered(str(archive.path), name, weights[name])
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


def _place(
    parts: RankParts, weights: dict[str, Weight], name: str, facts: TensorFacts, rank: tuple[int, int], first_layer: int
) -> None:
    """Add a stored tensor to the whole one that it is a part of. `rank`: its tensor rank, and their number."""
    if name in _IGNORED or name.endswith("_extra_state"):
        return
    layer = _LAYER.fullmatch(name)
    known = ANY_LAYER.get(layer[2]) if layer else OTHER_NAMES.get(name)
    if known is None:
        raise _unknown(parts.archive, name)
    key, axis = known
    key = f"decoder.layers.{first_layer + int(layer[1])}.{key}" if layer else key
    parts.put(weights, name, key, facts, axis, rank)
