"""Checkpoints in Megatron-LM's format `torch`: a file by torch.save for each rank that has weights of its own.

Source: Megatron-LM core_v0.12.0 to core_v0.19.0, megatron/training/checkpointing.py (get_checkpoint_name and
generate_state_dict), and 2.0 to 3.0, megatron/checkpointing.py and model/language_model.py: `mp_rank_TT`, with
`_PPP` at more than one pipeline stage and `_EEE` at more than one expert rank; `model`, or `model0`, `model1` … for the
chunks of an interleaved pipeline; layers are counted from 0 in each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive, Member
from hpclm.formats.format_guard import guarded
from hpclm.formats.megatron.inert_pickle import inert
from hpclm.formats.megatron.saved_arguments import given_arguments
from hpclm.formats.megatron.stacked_tensors import layer_tensor
from hpclm.formats.nemo.gpt_names import ANY_LAYER, OTHER_NAMES
from hpclm.formats.rank_parts import COLUMN, ROW, WHOLE, RankParts
from hpclm.formats.stored_weights import Weight
from hpclm.formats.torch_pickles import TensorFacts, read_index

NAMES = ("model_optim_rng.pt", "model_rng.pt")
_FILE = re.compile(r"(?:^|/)mp_rank_(\d{2,5})(?:_(\d{3,5}))?(?:_(\d{3,5}))?/(?:model_optim_rng|model_rng)\.pt")
_LAYER = re.compile(r"(?:encoder|decoder|transformer)\.layers\.(\d{1,4})\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(?P<number>\d{1,4})\.(?P<part>linear_fc[12]\.[a-z]+)")
_GROUPED = re.compile(r"mlp\.experts\.(?P<part>linear_fc[12]\.[a-z]+)(?P<number>\d{1,4})")
_MOST_RANKS = 1 << 16
_CHUNK = re.compile(r"model\d{0,3}")
_MORE = {
    "self_attention.q_layernorm.weight": WHOLE,
    "self_attention.q_layernorm.bias": WHOLE,
    "self_attention.k_layernorm.weight": WHOLE,
    "self_attention.k_layernorm.bias": WHOLE,
    "mlp.router.weight": WHOLE,
    "mlp.router.bias": WHOLE,
    "pre_mlp_layernorm.weight": WHOLE,
    "pre_mlp_layernorm.bias": WHOLE,
}
# Names of before megatron-core: NeMo 1.x kept those of one time.
_FINAL = re.compile(r"^(?:transformer|encoder)\.final_(?:layer)?norm\.")
_NORM = re.compile(r"^(input|post_attention)_norm\.")
_ATTENTION = re.compile(r"^attention\.")
# Copies of the embeddings at the last stage; others hold no weights.
_IGNORED = ("word_embeddings_for_head.weight", "rotary_pos_emb.inv_freq")


def rank_files(archive: Archive) -> list[tuple[tuple[str | None, ...], Member]]:
    """The numbers in the names of the ranks' folders, and the files in them; empty: it is in another format."""
    found = ((_FILE.search(name), member) for name, member in sorted(archive.members.items()))
    return [(matched.groups(), member) for matched, member in found if matched is not None]


def content(archive: Archive, member: Member) -> dict[str, Any]:
    """What a rank's file holds. Raises CheckpointError."""
    found = read_index(archive, member, inert)
    if not isinstance(found, dict):
        raise CheckpointError(f"{archive.path}: {member.name}: is no checkpoint of Megatron-LM")
    return found


@dataclass
class _Split:
    """How the ranks divide the model."""

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> _Split:
        def size(*names: str) -> int:
            value = next((given[name] for name in names if given.get(name) is not None), 1)
            if type(value) is not int or value < 1:
                raise CheckpointError(f"{where}: {names[0]} is {value!r}; it must be a number of 1 or more")
            return value

        tensor = size("tensor_model_parallel_size", "model_parallel_size")
        expert = size("expert_model_parallel_size")
        expert_tensor = size("expert_tensor_parallel_size", "tensor_model_parallel_size")
        if given.get("num_experts") and expert_tensor not in (1, tensor):
            raise CheckpointError(
                f"{where}: expert_tensor_parallel_size {expert_tensor} is neither 1 nor {tensor}; save the checkpoint "
                "in the format torch_dist (--ckpt-convert-format torch_dist)"
            )
        return cls(tensor, size("pipeline_model_parallel_size"), expert, expert_tensor)

    def place(self, numbers: tuple[str | None, ...]) -> tuple[int, int, int]:
        """Tensor, pipeline and expert rank of a file by the numbers in its folder's name."""
        first, *more = (int(one) for one in numbers if one is not None)
        pipe = more.pop(0) if self.pipeline > 1 and more else 0
        return first, pipe, more.pop(0) if more else 0


@dataclass
class _RankFile:
    place: tuple[int, int, int]
    member: Member
    chunks: list[dict[str, TensorFacts]] = field(default_factory=list)


@guarded("a checkpoint of Megatron-LM (torch)")
def read_weights(archive: Archive, heads: int, *, gated: bool) -> dict[str, Weight]:
    """Every tensor of the model under hpclm's name. Raises CheckpointError for missing and for unknown tensors.

    Args:
        heads: attention heads of the model, to reorder the rows of query, key and value of the first versions.
        gated: whether the MLP's first layer includes a gate.
    """
    found = rank_files(archive)
    first = content(archive, found[0][1])
    given = given_arguments(first, f"{archive.path}: {found[0][1].name}")
    split = _Split.of(given, f"{archive.path}: {found[0][1].name}")
    version = float(first.get("checkpoint_version") or 0)
    if not version >= 0 or version == 1:
        raise CheckpointError(f"{archive.path}: is of checkpoint_version 1.0, whose order of heads hpclm does not read")
    files = [_RankFile(split.place(numbers), member) for numbers, member in found]
    _are_there(archive, split, [file.place for file in files])
    for file in files:
        file.chunks = list(_chunks(archive, file.member, first if file is files[0] else content(archive, file.member)))
    parts = RankParts(archive, heads, gated=gated, legacy=version < 1)
    tied = not given.get("untie_embeddings_and_output_weights", False)
    placed = _Placed(parts, split, int(given.get("num_experts") or 0) // split.expert, tied)
    firsts = _first_layers(files)
    for file in files:
        for chunk, tensors in enumerate(file.chunks):
            for name, facts in tensors.items():
                placed.put(name, facts, file.place, firsts[file.place[1], chunk])
    for name, weight in placed.weights.items():
        if not weight.is_complete:
            raise CheckpointError(f"{archive.path}: {name} is not complete; copy the checkpoint again")
    return placed.weights


def _are_there(archive: Archive, split: _Split, places: list[tuple[int, int, int]]) -> None:
    sizes = (("tensor", split.tensor), ("expert", split.expert))
    if split.pipeline * max(split.tensor, split.expert) > _MOST_RANKS:
        count = f"{split.tensor} tensor, {split.pipeline} pipeline and {split.expert} expert ranks"
        raise CheckpointError(f"{archive.path}: has the files of {len(places)} ranks, its arguments say {count}")
    for pipe in range(split.pipeline):
        for (word, size), axis in zip(sizes, (0, 2), strict=True):
            there = {place[axis] for place in places if place[1] == pipe}
            missing = sorted(set(range(size)) - there)
            if missing:
                raise CheckpointError(
                    f"{archive.path}: the file of {word} rank {missing[0]}, pipeline rank {pipe} is missing; copy the "
                    "checkpoint again"
                )


def _chunks(archive: Archive, member: Member, found: dict[str, Any]) -> Iterator[dict[str, TensorFacts]]:
    """The tensors of each chunk of layers of a rank, by their names without `language_model.`."""
    names = sorted(
        (key for key in found if isinstance(key, str) and _CHUNK.fullmatch(key)), key=lambda key: (len(key), key)
    )
    if not names:
        raise CheckpointError(f"{archive.path}: {member.name}: holds no model")
    for name in names:
        yield dict(_flat(found[name], ""))


def _flat(tree: Any, before: str) -> Iterator[tuple[str, TensorFacts]]:
    if isinstance(tree, TensorFacts):
        yield before.removeprefix("module.").removeprefix("language_model."), tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{before}.{key}" if before else str(key))


def _first_layers(files: list[_RankFile]) -> dict[tuple[int, int], int]:
    """The model's number of the first layer in each pipeline rank's chunk: chunk by chunk, in each rank by rank."""
    counts: dict[tuple[int, int], int] = {}
    for file in files:
        for chunk, tensors in enumerate(file.chunks):
            layers = [int(matched[1]) + 1 for matched in map(_LAYER.fullmatch, tensors) if matched]
            counts[chunk, file.place[1]] = max(counts.get((chunk, file.place[1]), 0), *layers, 0)
    firsts, total = {}, 0
    for (chunk, pipe), count in sorted(counts.items()):
        firsts[pipe, chunk] = total
        total += count
    return firsts


@dataclass
class _Placed:
    """The tensors so far.

    Attributes:
        experts: a layer's on a rank; 0: none.
        tied: the last stage has a copy of the word embeddings.
    """

    parts: RankParts
    split: _Split
    experts: int
    tied: bool
    weights: dict[str, Weight] = field(default_factory=dict)
    seen: set[tuple[str, int]] = field(default_factory=set)

    def put(self, name: str, facts: TensorFacts, place: tuple[int, int, int], first: int) -> None:
        """Add a rank's tensor. `first`: the model's number of the first layer where it is from."""
        if name in _IGNORED or name.endswith("_extra_state") or (self.tied and name == "output_layer.weight"):
            return
        layer = _LAYER.fullmatch(name)
        tensor = place[0], self.split.tensor
        if layer is None:
            known = OTHER_NAMES.get(_FINAL.sub("decoder.final_layernorm.", name))
        else:
            known = self._in_layer(layer[2], place[2])
            if known and known[0].startswith("mlp.experts.") and self.split.expert_tensor == 1:
                tensor = 0, 1
        if known is None:
            raise CheckpointError(f"{self.parts.archive.path}: contains {name!r}, which models of hpclm have not")
        key, axis = known
        key = f"decoder.layers.{first + int(layer[1])}.{key}" if layer else key
        if (key, tensor[0]) not in self.seen:
            self.seen.add((key, tensor[0]))
            self.parts.put(self.weights, name, key, facts, axis, tensor)

    def _in_layer(self, inner: str, expert_rank: int) -> tuple[str, int | None] | None:
        """hpclm's name within a layer, and the axis that tensor ranks share."""
        expert = _EXPERT.fullmatch(inner) or _GROUPED.fullmatch(inner)
        if expert is not None:
            number, part = expert_rank * self.experts + int(expert["number"]), expert["part"]
            axis = ROW if part == "linear_fc2.weight" else WHOLE if part == "linear_fc2.bias" else COLUMN
            return f"mlp.experts.{number}.{part}", axis
        if inner in _MORE:
            return layer_tensor(inner, experts=self.experts > 0), _MORE[inner]
        return ANY_LAYER.get(_ATTENTION.sub("self_attention.", _NORM.sub(r"\1_layernorm.", inner)))
