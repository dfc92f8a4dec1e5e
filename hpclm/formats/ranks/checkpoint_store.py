"""One checkpoint on disk: one safetensors file per rank, and a manifest that lists every piece of every tensor.

Layout of a checkpoint directory, complete if and only if `manifest.json` exists:

    shard-00000.safetensors   the pieces rank 0 wrote
    manifest.json             see `formats.checkpoint_manifest`

Any split can read what any other wrote, piece by piece, and nothing in it is a pickle. torch's and megatron-core's
own formats are not used: their index is a pickle, so a checkpoint from elsewhere could run code, they have no
checksums, and megatron-core's writer starts processes of its own, each importing torch again.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from hpclm.core import heartbeat
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError, PeerError
from hpclm.core.files import sync, umask, write_json
from hpclm.core.records import from_dict, to_dict
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
from hpclm.formats.ranks.staging import Staging
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
        finish: called on rank 0 with the directory before the tensors are written, to add files next to them; the
            manifest has their checksums too.
    """
    Saving(directory, shards, state, finish).wait()
    dist.barrier()


class Saving:
    """A checkpoint that a thread of each rank writes; rank 0's completes it when all have written.

    They tell it through the store that the ranks met at, so that no collective runs beside those of the training. The
    constructor is collective; the arguments are those of `save`.

    Args:
        staging: buffers to copy the tensors to, which may then change while they are written; None: they do not.
        done: called on rank 0 when the checkpoint is complete.
    """

    def __init__(
        self,
        directory: Path,
        shards: Iterable[Shard],
        state: Mapping[str, object],
        finish: Callable[[Path], None] = lambda folder: None,
        *,
        staging: Staging | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory, self.partial = directory, directory.with_name(directory.name + ".partial")
        self.state, self.finish, self.done = state, finish, done
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.store = _Notes(next(_numbers))
        if self.rank == 0:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            # here and not in the thread: it may read what the next step changes
            self.finish(self.partial)
        dist.barrier()
        own = [shard for shard in shards if is_main_replica(shard)]
        data = [shard.data for shard in own] if staging is None else staging.copies([shard.data for shard in own])
        self.pieces = list(zip(own, data, strict=True))
        self.error: BaseException | None = None
        self.beats = heartbeat.Beside()
        self.thread = threading.Thread(target=self._run, name=f"saving {directory.name}", daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Until this rank's part is written; on rank 0 until the checkpoint is complete. Raises what went wrong."""
        seen = -1
        while self.thread.is_alive():
            with heartbeat.waiting() if self.beats.waits else contextlib.nullcontext():
                self.thread.join(0.2)
            if self.beats.count != seen:  # a disk that hangs must be seen
                seen = self.beats.count
                heartbeat.beat()
        self.check()

    def finish_within(self, seconds: float) -> None:
        """Let it be completed where the training has failed, if that takes no longer."""
        self.thread.join(seconds)

    def check(self) -> None:
        """Raise what has gone wrong so far."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        heartbeat.count_beside(self.beats)
        try:
            written = _write_shard(self.partial, self.rank, self.pieces)
            if self.rank == 0:
                self._complete(written)
            else:
                self.store.tell(self.rank, written)
        except BaseException as error:
            self.error = error
            if self.rank != 0:
                self.store.tell(self.rank, None, failed=True)

    def _complete(self, own: _Written | None) -> None:
        self.beats.waits = True  # for other ranks
        files = [own, *(self.store.hear(rank) for rank in range(1, self.world_size))]
        self.beats.waits = False
        manifest = _manifest(files, self.state)
        beside = (path for path in sorted(self.partial.iterdir()) if path.name not in manifest.files)
        manifest.files.update({path.name: StoredFile(path.stat().st_size, sha256_of(path)) for path in beside})
        write_json(CheckpointFolder(self.partial).manifest, to_dict(manifest))
        shutil.rmtree(self.directory, ignore_errors=True)
        self.partial.replace(self.directory)
        sync(self.directory.parent)
        self.done()


# Every rank makes the same checkpoints in the same order.
_numbers = itertools.count()


class _Notes:
    """What ranks tell rank 0 of one checkpoint."""

    def __init__(self, number: int) -> None:
        self.store = dist.distributed_c10d._get_default_store()
        self.prefix = f"checkpoint/{number}"

    def tell(self, rank: int, written: _Written | None, *, failed: bool = False) -> None:
        said = {"failed": failed, "written": None if written is None else to_dict(written)}
        packed = base64.b64encode(zlib.compress(json.dumps(said).encode()))
        self.store.set(f"{self.prefix}/{rank}", packed.decode())

    def hear(self, rank: int) -> _Written | None:
        """Waits for it. The store is asked now and then: a wait would keep the training from using it."""
        key = f"{self.prefix}/{rank}"
        while not self.store.check([key]):
            time.sleep(_PAUSE_S)
        said = json.loads(zlib.decompress(base64.b64decode(self.store.get(key))))
        self.store.delete_key(key)
        if said["failed"]:
            raise PeerError(f"rank {rank} could not write its part of the checkpoint; its log says why")
        return None if said["written"] is None else from_dict(_Written, said["written"])


_PAUSE_S = 0.02


@dataclass(frozen=True)
class _Written:
    """A file that a rank wrote, and the pieces of tensors in it; at least one."""

    name: str
    size: int
    sha256: str
    tensors: dict[str, StoredTensor]


def _write_shard(folder: Path, rank: int, pieces: list[tuple[Shard, torch.Tensor]]) -> _Written | None:
    name = f"shard-{rank:05d}.safetensors"
    data: dict[str, torch.Tensor] = {}
    tensors: dict[str, StoredTensor] = {}
    for number, (shard, values) in enumerate(pieces):
        data[str(number)] = values
        dtype = str(values.dtype).removeprefix("torch.")
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
