"""One checkpoint on disk: one safetensors file per rank, and a manifest that lists every piece of every tensor.

Layout of a checkpoint directory, complete if and only if `manifest.json` exists:

    shard-00000.safetensors   the pieces rank 0 wrote
    manifest.json             see `formats.checkpoint_manifest`

Any split can read what any other wrote, piece by piece, and nothing in it is a pickle. torch's and megatron-core's
own formats are not used: their index is a pickle, so a checkpoint from elsewhere could run code, they have no
checksums, and megatron-core's writer starts processes of its own, each importing torch again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from hpclm.core import heartbeat
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import sync, umask, write_json
from hpclm.core.records import to_dict
from hpclm.core.storage import when_there_is_room
from hpclm.formats.checkpoint_manifest import (
    Manifest,
    Piece,
    StoredFile,
    StoredTensor,
    inside,
    read_manifest,
    sha256_of,
)
from hpclm.formats.ranks.tensor_file import write_tensors
from hpclm.formats.ranks.tensor_shard import Shard, is_main_replica


def save(
    directory: Path,
    shards: Iterable[Shard],
    state: Mapping[str, object],
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a checkpoint from all ranks together (collective).

    It is written to a temporary directory and renamed after the last byte is on disk, so a crash leaves either the
    whole checkpoint or none.

    Args:
        state: JSON-ready values kept in the manifest.
        finish: called on rank 0 with the directory before it is renamed, to add files next to the tensors; the manifest
            has their checksums too.
    """
    rank = dist.get_rank()
    partial = directory.with_name(directory.name + ".partial")
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    own = _write_shard(partial, rank, [shard for shard in shards if is_main_replica(shard)])
    files = [own] * dist.get_world_size()
    dist.all_gather_object(files, own)
    if rank == 0:
        finish(partial)
        manifest = _manifest(files, state)
        beside = (path for path in sorted(partial.iterdir()) if path.name not in manifest.files)
        manifest.files.update({path.name: StoredFile(path.stat().st_size, sha256_of(path)) for path in beside})
        write_json(CheckpointFolder(partial).manifest, to_dict(manifest))
        shutil.rmtree(directory, ignore_errors=True)
        partial.replace(directory)
        sync(directory.parent)
    dist.barrier()


@dataclass(frozen=True)
class _Written:
    """A file that a rank wrote, and the pieces of tensors in it; at least one."""

    name: str
    size: int
    sha256: str
    tensors: dict[str, StoredTensor]


def _write_shard(folder: Path, rank: int, shards: list[Shard]) -> _Written | None:
    name = f"shard-{rank:05d}.safetensors"
    data: dict[str, torch.Tensor] = {}
    tensors: dict[str, StoredTensor] = {}
    for number, shard in enumerate(shards):
        data[str(number)] = shard.data
        dtype = str(shard.data.dtype).removeprefix("torch.")
        tensor = tensors.setdefault(shard.key, StoredTensor(dtype, list(shard.global_shape), []))
        tensor.pieces.append(Piece(name, str(number), list(shard.global_offset), list(shard.local_shape)))
    if not data:
        return None
    path = folder / name

    checksum = ""

    def write() -> None:
        nonlocal checksum
        checksum = write_tensors(path, data)
        path.chmod(0o666 & ~umask())
        sync(path)

    when_there_is_room(write, path)
    return _Written(name, path.stat().st_size, checksum, tensors)


def _manifest(files: list[_Written | None], state: Mapping[str, object]) -> Manifest:
    written = [file for file in files if file is not None]
    tensors: dict[str, StoredTensor] = {}
    for file in written:
        for key, part in file.tensors.items():
            tensors.setdefault(key, StoredTensor(part.dtype, part.shape, [])).pieces.extend(part.pieces)
    return Manifest({file.name: StoredFile(file.size, file.sha256) for file in written}, tensors, dict(state))


def load(directory: Path, shards: Iterable[Shard], *, rename: Callable[[str], str] = lambda key: key) -> None:
    """Fill `shards` in place from a checkpoint of any split, reading only the bytes that overlap.

    Values are cast to the shards' dtype. A tensor marked `allow_shape_mismatch` (the padded vocabulary) gets the rows
    that both have; the rest is zero.

    Args:
        rename: the name in the checkpoint for a shard's key.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or not completely covered by its pieces.
    """
    tensors = read_manifest(directory).tensors
    with _Files(directory) as files:
        for shard in shards:
            key = rename(shard.key)
            if key not in tensors:
                raise CheckpointError(
                    f"{directory}: contains no tensor {key}; is it a checkpoint of this kind of model?"
                )
            _fill(directory, shard, tensors[key], files)


class WholeTensors:
    """The tensors of a checkpoint, each put together from its pieces when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stored = read_manifest(directory).tensors
        self.files = _Files(directory)

    def dtype(self, name: str) -> torch.dtype:
        found: torch.dtype = getattr(torch, self._entry(name).dtype)
        return found

    def tensor(self, name: str, rows: int | None = None) -> torch.Tensor:
        """The whole tensor, or its first rows. Raises CheckpointError."""
        entry = self._entry(name)
        whole = torch.empty(entry.shape, dtype=self.dtype(name))
        filled = 0
        for piece in entry.pieces:
            sizes = tuple(slice(size) for size in piece.shape)
            place = tuple(slice(start, start + size) for start, size in zip(piece.offset, piece.shape, strict=True))
            whole[place] = self.files.slice(piece.file, piece.name, sizes)
            filled += math.prod(piece.shape)
        if filled != whole.numel():
            raise CheckpointError(f"{self.directory}: {name}: {filled} of {whole.numel()} values found")
        return whole if rows is None else whole[:rows]

    def _entry(self, name: str) -> StoredTensor:
        if name not in self.stored:
            raise CheckpointError(f"{self.directory}: contains no tensor {name}; is it a checkpoint of a whole model?")
        return self.stored[name]


@torch.no_grad()
def _fill(directory: Path, shard: Shard, tensor: StoredTensor, files: _Files) -> None:
    stored = tuple(tensor.shape)
    if stored != tuple(shard.global_shape) and not shard.allow_shape_mismatch:
        raise CheckpointError(
            f"{directory}: {shard.key} has shape {stored}, the model of the recipe needs {tuple(shard.global_shape)}"
        )
    if shard.allow_shape_mismatch:
        shard.data.zero_()
    heartbeat.beat()
    filled = 0
    for piece in tensor.pieces:
        found = overlap(shard.global_offset, shard.local_shape, piece.offset, piece.shape)
        if found is None:
            continue
        ours, theirs = found
        part = files.slice(piece.file, piece.name, theirs)
        shard.data[ours].copy_(part)
        filled += part.numel()
    if filled != shard.data.numel() and not shard.allow_shape_mismatch:
        raise CheckpointError(f"{directory}: {shard.key}: {filled} of {shard.data.numel()} values found")


def overlap(
    offset: tuple[int, ...], shape: tuple[int, ...], other_offset: list[int], other_shape: list[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    ours, theirs = [], []
    for start, length, other_start, other_length in zip(offset, shape, other_offset, other_shape, strict=True):
        low, high = max(start, other_start), min(start + length, other_start + other_length)
        if low >= high:
            return None
        ours.append(slice(low - start, high - start))
        theirs.append(slice(low - other_start, high - other_start))
    return tuple(ours), tuple(theirs)


class _Files:
    """The shard files of a checkpoint, each mapped once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # the types of safetensors leave its methods out
        self.open: dict[str, Any] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.clear()

    def slice(self, file: str, name: str, where: tuple[slice, ...]) -> torch.Tensor:
        try:
            if file not in self.open:
                self.open[file] = safe_open(str(inside(self.directory, file)), framework="pt")
            stored = self.open[file]
            part: torch.Tensor = stored.get_slice(name)[where] if where else stored.get_tensor(name)
        except CheckpointError:
            raise
        except Exception as error:  # safetensors raises its own exceptions for a damaged file
            raise CheckpointError(f"{self.directory / file}: cannot be read ({error}); it is damaged") from error
        return part
