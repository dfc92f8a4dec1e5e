"""Weights that megatron-core wrote as zarr arrays, as in Nemotron-4-340B: a folder an array, a file a chunk.

Source: megatron-core 0.8, megatron/core/dist_checkpointing/strategies/zarr.py (no compressor, bfloat16 as a dtype of
that name); transformer/transformer_block.py stacks the layers along the first axis. The format is zarr's version 2.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive, Member
from hpclm.formats.torch_pickles import TensorFacts

ARRAY = ".zarray"
_DTYPES = {"bfloat16": ("bfloat16", 2), "<f2": ("float16", 2), "<f4": ("float32", 4)}
_STACKED = re.compile(r"decoder\.layers\.(?!\d)(.+)")
_MAX_AXIS, _MAX_CHUNKS, _MAX_AXES = 1 << 40, 1 << 20, 8


@dataclass(frozen=True)
class ZarrArray:
    """An array of the archive. `folder`: where its chunks are, as the archive names it."""

    folder: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    width: int


def has_arrays(archive: Archive) -> bool:
    return any(name.endswith(f"/{ARRAY}") for name in archive.members)


def stored_arrays(
    archive: Archive,
) -> Iterator[tuple[str, tuple[int, ...], str, list[tuple[TensorFacts, tuple[int, ...]]]]]:
    """Each tensor of the model: its name in megatron-core with the layer's number, its shape and dtype, and its pieces
    with their offsets. Raises CheckpointError for a damaged or compressed array and for a missing chunk."""
    for name, member in archive.members.items():
        if not name.endswith(f"/{ARRAY}"):
            continue
        array = _array(archive, member)
        key = array.folder.rpartition("/")[2].removeprefix("model.").removeprefix("module.")
        if key.startswith("optimizer.") or key.endswith("_extra_state"):
            continue
        pieces = list(_chunks(archive, array))
        stacked = _STACKED.fullmatch(key)
        if stacked is None:
            yield key, array.shape, array.dtype, pieces
            continue
        layers: list[list[tuple[TensorFacts, tuple[int, ...]]]] = [[] for _ in range(array.shape[0])]
        for facts, offset in pieces:
            for number in range(facts.shape[0]):
                layers[offset[0] + number].append((facts.inner((number,)), offset[1:]))
        for number, parts in enumerate(layers):
            yield f"decoder.layers.{number}.{stacked[1]}", array.shape[1:], array.dtype, parts


def _array(archive: Archive, member: Member) -> ZarrArray:
    where = f"{archive.path}: {member.name}"
    try:
        written = json.loads(archive.read(member))
        compressed = written.get("compressor") or written.get("filters")
        dtype, width = _DTYPES[written["dtype"]]
        shape, chunks = _sizes(written["shape"]), _sizes(written["chunks"])
        separator = written.get("dimension_separator", ".")
        plain = (written["zarr_format"], written["order"], separator) == (2, "C", ".")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: damaged, or not an array of weights ({error!r})") from error
    if compressed or not plain:
        raise CheckpointError(f"{where}: is compressed, or not in C order; megatron-core writes neither")
    if len(shape) != len(chunks):
        raise CheckpointError(f"{where}: has {len(shape)} axes and chunks of {len(chunks)}; it is damaged")
    return ZarrArray(member.name.removesuffix(f"/{ARRAY}"), shape, chunks, dtype, width)


def _sizes(written: Any) -> tuple[int, ...]:
    if not isinstance(written, list) or not 1 <= len(written) <= _MAX_AXES:
        raise ValueError(f"axes: {str(written)[:60]}")
    for size in written:
        if type(size) is not int or not 1 <= size <= _MAX_AXIS:
            raise ValueError(f"a size of {str(size)[:60]}")
    return tuple(written)


def _chunks(archive: Archive, array: ZarrArray) -> Iterator[tuple[TensorFacts, tuple[int, ...]]]:
    """Every chunk and its offset. A chunk at the end of an axis is stored whole and used in part."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    if math.prod(counts) > _MAX_CHUNKS:
        raise CheckpointError(f"{archive.path}: {array.folder} has {math.prod(counts)} chunks; it is damaged")
    size = math.prod(array.chunks) * array.width
    strides = tuple(math.prod(array.chunks[axis + 1 :]) for axis in range(len(array.chunks)))
    for place in itertools.product(*map(range, counts)):
        name = f"{array.folder}/{'.'.join(map(str, place))}"
        member = archive.members.get(name)
        if member is None or member.size != size:
            found = "is missing" if member is None else f"has {member.size} bytes instead of {size}"
            raise CheckpointError(f"{archive.path}: {name} {found}; copy the archive again")
        offset = tuple(number * chunk for number, chunk in zip(place, array.chunks, strict=True))
        whole = zip(array.shape, offset, array.chunks, strict=True)
        shape = tuple(min(chunk, axis - start) for axis, start, chunk in whole)
        yield TensorFacts(member, array.dtype, shape, strides, member.offset), offset
