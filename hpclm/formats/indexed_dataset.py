"""Megatron's indexed dataset: tokens in `PREFIX.bin`, where sequences and documents lie in `PREFIX.idx`.

Little-endian. The index has a header of 34 bytes (magic, version 1, code of the tokens' type, number of sequences,
number of documents plus one), then the sequences' lengths in tokens (int32), their places in the .bin in bytes (int64)
and the sequence at which each document begins, with the end of the last one (int64).
Source: NVIDIA/Megatron-LM core_r0.16, megatron/core/datasets/indexed_dataset.py. Without numpy: planning reads headers.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.core.indexed_files import bin_path, idx_path

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
# numpy's names by code, and bytes a token
DTYPES = {
    1: ("uint8", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    6: ("float64", 8),
    7: ("float32", 4),
    8: ("uint16", 2),
}
_LENGTH, _PLACE = 4, 8


def dtype_for(vocab_size: int) -> str:
    """uint16 where every id fits, with room for added ones, else int32 (`DType.optimal_dtype`)."""
    return "uint16" if vocab_size < 65500 else "int32"


def code_of(dtype: str) -> int:
    return next(code for code, (name, _) in DTYPES.items() if name == dtype)


@dataclass(frozen=True)
class IndexHeader:
    """What an index says of its data set.

    Attributes:
        dtype: numpy's name of the tokens' type; itemsize: its bytes.
        sequences, documents: how many. A document without tokens has no sequence.
        tokens: of all sequences.
        multimodal: whether each sequence has a mode, in a further byte of the index.
    """

    dtype: str
    itemsize: int
    sequences: int
    documents: int
    tokens: int
    multimodal: bool = False

    @property
    def lengths_at(self) -> int:
        return HEADER.size

    @property
    def places_at(self) -> int:
        return self.lengths_at + _LENGTH * self.sequences

    @property
    def documents_at(self) -> int:
        return self.places_at + _PLACE * self.sequences


def read_header(prefix: str) -> IndexHeader:
    """The header of `prefix`, its .idx and .bin compared with each other. Raises DataError for a pair that is missing,
    truncated or not an indexed data set."""
    index, data = idx_path(prefix), bin_path(prefix)
    sizes = {path: _size(path, prefix) for path in (index, data)}
    try:
        with open_file(index) as file:
            raw = file.read(HEADER.size)
            if len(raw) < HEADER.size or not raw.startswith(MAGIC):
                raise DataError(f"{index}: not an index of Megatron's indexed data sets; give the prefix of a pair")
            _, version, code, sequences, ends = HEADER.unpack(raw)
            if version != VERSION or code not in DTYPES or ends < 1:
                raise DataError(
                    f"{index}: damaged (version {version}, type {code}, {ends} document ends); tokenize again"
                )
            name, itemsize = DTYPES[code]
            expected = HEADER.size + sequences * (_LENGTH + _PLACE) + ends * _PLACE
            if sizes[index] not in (expected, expected + sequences):
                raise DataError(
                    f"{index}: {sizes[index]} bytes, but its {sequences} sequences and {ends - 1} documents take "
                    f"{expected}; it is truncated or damaged: copy it or tokenize again"
                )
            end = _end_of_data(file, sequences, itemsize)
    except OSError as error:
        raise DataError(f"{index}: cannot be read ({error.strerror})") from error
    if sizes[data] != end:
        raise DataError(
            f"{data}: {sizes[data]} bytes, but its index ends at {end}; it is truncated or belongs to another index: "
            "copy the pair or tokenize again"
        )
    return IndexHeader(name, itemsize, sequences, ends - 1, end // itemsize, sizes[index] != expected)


def _size(path: Path, prefix: str) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError:
        raise DataError(f"{prefix!r}: not a path") from None
    if prefix.endswith((".bin", ".idx")):
        raise DataError(f"{path}: does not exist; give the prefix without {prefix[-4:]}")
    raise DataError(f"{path}: does not exist; give the prefix of a .bin and an .idx file")


def _end_of_data(file: BinaryIO, sequences: int, itemsize: int) -> int:
    """Where the last sequence ends in the .bin, in bytes."""
    if not sequences:
        return 0
    handle = file.fileno()
    length = struct.unpack("<i", os.pread(handle, _LENGTH, HEADER.size + _LENGTH * (sequences - 1)))[0]
    places = HEADER.size + _LENGTH * sequences
    place = struct.unpack("<q", os.pread(handle, _PLACE, places + _PLACE * (sequences - 1)))[0]
    return int(place + length * itemsize)
