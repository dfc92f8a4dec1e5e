"""The index of a checkpoint in Megatron-LM's format `torch_dist`: which tensors there are, and where their parts lie.

Source: torch 2.13, torch/distributed/checkpoint/metadata.py and filesystem.py; megatron-core 0.16.1,
megatron/core/dist_checkpointing/strategies/torch.py. `.metadata` is a pickle of torch's Metadata; the parts are in
`*.distcp`, each a tensor by torch.save.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive, Member
from hpclm.formats.format_guard import guarded
from hpclm.formats.megatron.inert_pickle import Inert, read
from hpclm.formats.stored_weights import Piece, Weight
from hpclm.formats.torch_pickles import TensorFacts, read_index

METADATA = ".metadata"
_OPTIMIZER = ("optimizer.", "chained_")


@guarded("a distributed checkpoint (torch_dist)")
def stored_tensors(archive: Archive) -> dict[str, Weight]:
    """The tensors by name, without the optimizer's. Raises CheckpointError."""
    index = archive.find(METADATA)
    if index is None:
        raise CheckpointError(f"{archive.path}: has no {METADATA}")
    found = read(archive.read(index), f"{archive.path}: {index.name}")
    if not isinstance(found, Inert) or found.origin[1] != "Metadata":
        raise CheckpointError(f"{archive.path}: {index.name}: is no index of torch.distributed.checkpoint")
    folder = index.name.removesuffix(METADATA)
    described = {
        name: facts
        for name, facts in found.state["state_dict_metadata"].items()
        # the rest is Transformer Engine's state, which is not needed
        if not name.startswith(_OPTIMIZER) and facts.origin[1] == "TensorStorageMetadata"
    }
    made = {name: Weight(tuple(map(int, one.state["size"])), _dtype(one)) for name, one in described.items()}
    chunks = {name: _chunks(facts) for name, facts in described.items()}
    for place, info in found.state["storage_data"].items():
        name, offset = place.state["fqn"], place.state.get("offset")
        if name in made and offset is not None:
            at = tuple(map(int, offset))
            made[name].pieces.append(_piece(archive, folder, at, chunks[name][at], made[name].dtype, info.state))
    for name, weight in made.items():
        if not weight.is_complete:
            raise CheckpointError(f"{archive.path}: {name} is not complete, or damaged; copy the checkpoint again")
    return made


def _chunks(facts: Inert) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a tensor's parts, by their offsets."""
    states = (one.state for one in facts.state["chunks"])
    return {tuple(map(int, one["offsets"])): tuple(map(int, one["sizes"])) for one in states}


def _piece(
    archive: Archive, folder: str, offset: tuple[int, ...], sizes: tuple[int, ...], dtype: str, info: dict[str, Any]
) -> Piece:
    file, start, length = str(info["relative_path"]), int(info["offset"]), int(info["length"])
    if "/" in file or file in ("", ".", "..") or start < 0 or length < 0:
        raise CheckpointError(f"{archive.path}: its index names the file {file!r}; do not trust it")
    member = archive.members.get(folder + file)
    if member is None:
        raise CheckpointError(f"{archive.path}: {folder}{file} is missing; copy the checkpoint again")
    if start + length > member.size:
        raise CheckpointError(f"{archive.path}: {folder}{file}: is cut off")
    part = Member(member.name, member.file, member.offset + start, length)
    return Piece(offset, sizes, _facts(archive, part, sizes, dtype))


def _facts(archive: Archive, part: Member, sizes: tuple[int, ...], dtype: str) -> Callable[[], TensorFacts]:
    def facts() -> TensorFacts:
        found = read_index(archive, part)
        if not isinstance(found, TensorFacts) or (found.shape, found.dtype) != (sizes, dtype):
            raise CheckpointError(
                f"{archive.path}: what {part.name} has at byte {part.offset} is not the tensor that the index names"
            )
        return found

    return facts


def _dtype(facts: Inert) -> str:
    """Of TensorProperties, whose state is a tuple that begins with it: a name in torch's module."""
    state = facts.state["properties"].state
    first = state["state"][0] if "state" in state else state["dtype"]
    origin = first.origin if isinstance(first, (Inert, type)) else ("", "")  # type: ignore[union-attr]
    return str(origin[1])
