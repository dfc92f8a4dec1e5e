"""Writes a checkpoint in Megatron-LM's format `torch_dist`, tensor by tensor: torch.distributed.checkpoint's own writer
wants all of them in host memory at once. The format: formats/megatron/distributed_index.py."""

from __future__ import annotations

import io
import itertools
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Size, Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from hpclm.core import heartbeat
from hpclm.core.files import sync
from hpclm.formats.megatron.distributed_index import METADATA

FILE_BYTES = 5_000_000_000


class DistributedFolder:
    """A folder whose index is written when it is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.described: dict[str, Any] = {}
        self.places: dict[MetadataIndex, _StorageInfo] = {}
        self.files = 0
        self.file: BinaryIO | None = None

    def __enter__(self) -> DistributedFolder:
        return self

    def part(self, name: str, place: tuple[int, ...], sizes: tuple[int, ...], values: Tensor) -> None:
        """Add a part of the tensor `name`: what is at `place` in its first axes, which have these sizes."""
        heartbeat.beat()
        values = values.contiguous()
        offset, shape = Size((*place, *(0 for _ in values.shape))), Size((*(1 for _ in place), *values.shape))
        if name not in self.described:
            properties = TensorProperties(dtype=values.dtype)
            self.described[name] = TensorStorageMetadata(properties, Size((*sizes, *values.shape)), [])
        self.described[name].chunks.append(ChunkStorageMetadata(offset, shape))
        self._append(MetadataIndex(name, offset), values.view(shape))

    def state(self, name: str, sizes: tuple[int, ...]) -> None:
        """The empty states beside a module's weights, one at each place of its stacked axes."""
        for place in itertools.product(*map(range, sizes)):
            where = "_".join(".".join(map(str, numbers)) for numbers in (place, sizes))
            key = f"{name}._extra_state/shard_{where}"
            self.described[key] = BytesStorageMetadata()
            self._append(MetadataIndex(key), [None])  # a list, as megatron-core saves objects

    def _append(self, index: MetadataIndex, value: object) -> None:
        if self.file is None or self.file.tell() > FILE_BYTES:
            self._close()
            self.file = (self.folder / self._name()).open("wb")
        start = self.file.tell()
        packed = io.BytesIO()
        torch.save(value, packed)
        self.file.write(packed.getbuffer())
        self.places[index] = _StorageInfo(self._name(), start, self.file.tell() - start)

    def _name(self) -> str:
        return f"__0_{self.files}.distcp"

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
            sync(self.folder / self._name())
            self.files += 1

    def __exit__(self, kind: object, *_: object) -> None:
        self._close()
        if kind is None:
            metadata = Metadata(self.described, None, self.places)
            (self.folder / METADATA).write_bytes(pickle.dumps(metadata))
            sync(self.folder / METADATA)
