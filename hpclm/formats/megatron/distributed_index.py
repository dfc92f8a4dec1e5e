"""The index of a checkpoint in Megatron-LM's format `torch_dist`: which tensors there are, and where their parts lie.

Source: torch 2.13, torch/distributed/checkpoint/metadata.py and filesystem.py; megatron-core 0.16.1,
megatron/core/dist_checkpointing/strategies/torch.py. `.metadata` is a pickle of torch's Metadata; the parts are in
`*.distcp`, each a tensor by torch.save.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.format_guard import guarded
from hpclm.formats.megatron.inert_pickle import Inert, read

METADATA, COMMON, LATEST = ".metadata", "common.pt", "latest_checkpointed_iteration.txt"
_OPTIMIZER = ("optimizer.", "chained_")


@dataclass(frozen=True)
class Part:
    """A part of a tensor: its place in it, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Whole:
    """A tensor. `dtype`: as torch calls it, without `torch.`."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def iteration_folder(path: Path) -> Path | None:
    """The folder of a checkpoint: itself, or the latest in a folder of them. None: there is none."""
    if (path / METADATA).is_file() and (path / COMMON).is_file():
        return path
    try:
        text = (path / LATEST).read_text(errors="replace").strip()
    except OSError:
        return None
    found = path / ("release" if text == "release" else f"iter_{text.zfill(7)}")
    return found if text.isalnum() and (found / METADATA).is_file() else None


@guarded("a checkpoint of Megatron-LM")
def read_index(folder: Path) -> dict[str, Whole]:
    """Of a checkpoint's folder, the tensors by name, without the optimizer's. Raises CheckpointError."""
    path = folder / METADATA
    found = read(path.read_bytes(), str(path))
    if not isinstance(found, Inert) or found.origin[1] != "Metadata":
        raise CheckpointError(f"{path}: is no index of torch.distributed.checkpoint")
    places = found.state["storage_data"]
    tensors = {k: one for k, one in found.state["state_dict_metadata"].items() if not k.startswith(_OPTIMIZER)}
    parts: dict[str, list[Part]] = {}
    for index, info in places.items():
        name, offset = index.state["fqn"], index.state.get("offset")
        if name in tensors and offset is not None:
            parts.setdefault(name, []).append(_part(folder, offset, tensors[name], info.state))
    made = {}
    for name, facts in tensors.items():
        if facts.origin[1] != "TensorStorageMetadata":
            continue  # of Transformer Engine's state, which is not needed
        whole = Whole(_dtype(facts), tuple(map(int, facts.state["size"])), tuple(parts.get(name, ())))
        if sum(_count(part.sizes) for part in whole.parts) != _count(whole.shape):
            raise CheckpointError(f"{folder}: {name} is not complete")
        made[name] = whole
    return made


def _part(folder: Path, offset: Any, facts: Inert, info: dict[str, Any]) -> Part:
    wanted = tuple(map(int, offset))
    sizes = next(
        tuple(map(int, one.state["sizes"])) for one in facts.state["chunks"] if tuple(one.state["offsets"]) == wanted
    )
    file, start, length = str(info["relative_path"]), int(info["offset"]), int(info["length"])
    if "/" in file or file in ("", ".", "..") or start < 0 or length < 0:
        raise CheckpointError(f"{folder}: its index names the file {file!r}; do not trust it")
    try:
        size = (folder / file).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{folder / file}: cannot be read ({error.strerror})") from None
    if start + length > size:
        raise CheckpointError(f"{folder / file}: is cut off")
    return Part(wanted, sizes, file, start, length)


def _dtype(facts: Inert) -> str:
    """Of TensorProperties, whose state is a tuple that begins with it: a name in torch's module."""
    state = facts.state["properties"].state
    first = state["state"][0] if "state" in state else state["dtype"]
    origin = first.origin if isinstance(first, (Inert, type)) else ("", "")  # type: ignore[union-attr]
    return str(origin[1])


def _count(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count
