"""Parts of a tokenised corpus, each written whole by one worker, and their concatenation into an indexed data set.

A part has the tokens (`….bin`), the lengths of its sequences (`….lengths`, int32) and the sequence at which each of its
documents ends (`….ends`, int64), all as the final files have them, so that merging copies bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from hpclm.core.errors import DamagedError
from hpclm.core.files import sync
from hpclm.core.indexed_files import bin_path, idx_path
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.data.corpus.tokenized_record import Counts
from hpclm.formats.indexed_dataset import HEADER, MAGIC, VERSION, code_of

_ITEMS = 1 << 20
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class PartFiles:
    """Where the part of a number lies in a folder of parts."""

    folder: Path
    number: int

    @property
    def done(self) -> Path:
        """Its counts, written last."""
        return self.folder / f"part-{self.number:06d}.json"

    def data(self, key: int) -> Path:
        return self.folder / f"part-{self.number:06d}.{key}.bin"

    def lengths(self, key: int) -> Path:
        return self.folder / f"part-{self.number:06d}.{key}.lengths"

    def ends(self, key: int) -> Path:
        return self.folder / f"part-{self.number:06d}.{key}.ends"

    def counts(self) -> Counts | None:
        """None where it is not complete."""
        try:
            raw = read_sealed(self.done)
            return None if raw is None else from_dict(Counts, raw)
        except (DamagedError, OSError, ValueError):
            return None


class PartWriter:
    """Writes the sequences of one key, a batch of documents at a time."""

    def __init__(self, files: PartFiles, key: int, dtype: str) -> None:
        self.dtype = dtype
        self.paths = files.data(key), files.lengths(key), files.ends(key)
        self.data, self.lengths, self.ends = (path.open("wb") for path in self.paths)
        self.sequences = 0

    def add(self, tokens: np.ndarray, counts: np.ndarray, owner: np.ndarray, documents: int, end: int | None) -> int:
        """Add documents. Returns how many tokens were written.

        Args:
            tokens: of all sequences, one after the other [n].
            counts: how many each sequence has [s]; one without tokens is left out.
            owner: the document of each sequence [s], ascending, from 0.
            documents: how many there are.
            end: the token behind each document that has any.
        """
        kept = counts > 0
        counts, owner = counts[kept], owner[kept]
        if end is not None and len(counts):
            last = np.append(owner[1:] != owner[:-1], True)
            tokens = np.insert(tokens, np.cumsum(counts)[last], end)
            counts = counts + last
        self.data.write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self.lengths.write(np.ascontiguousarray(counts, dtype="<i4").data)
        ends = self.sequences + np.cumsum(np.bincount(owner, minlength=documents))
        self.ends.write(np.ascontiguousarray(ends, dtype="<i8").data)
        self.sequences += len(counts)
        return int(tokens.size)

    def close(self) -> None:
        """The files are on disk."""
        for file in (self.data, self.lengths, self.ends):
            file.flush()
            os.fsync(file.fileno())
            file.close()


def finish_part(files: PartFiles, counts: Counts) -> None:
    write_sealed(files.done, to_dict(counts))


def merge(
    parts: list[PartFiles], key: int, prefix: str, dtype: str, between: Callable[[], None] = lambda: None
) -> None:
    """Concatenate parts into `prefix`.bin and .idx (see `join`)."""
    pieces = [
        Sequences(part.data(key), Numbers.of_file(part.lengths(key), "<i4"), Numbers.of_file(part.ends(key), "<i8"))
        for part in parts
    ]
    join(pieces, prefix, dtype, between)


@dataclass(frozen=True)
class Numbers:
    """`count` numbers of a file, from byte `offset` on."""

    path: Path
    dtype: str
    offset: int
    count: int

    @classmethod
    def of_file(cls, path: Path, dtype: str) -> Numbers:
        return cls(path, dtype, 0, path.stat().st_size // np.dtype(dtype).itemsize)

    def blocks(self) -> Iterator[np.ndarray]:
        left = self.count
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left > 0:
                block = np.fromfile(file, dtype=self.dtype, count=min(_ITEMS, left))
                if not len(block):
                    raise DamagedError(f"{self.path}: ends before all of its numbers")
                left -= len(block)
                yield block


@dataclass(frozen=True)
class Sequences:
    """Of a data set: its tokens, the lengths of its sequences, and the sequence at which each document ends."""

    data: Path
    lengths: Numbers
    ends: Numbers


def join(pieces: list[Sequences], prefix: str, dtype: str, between: Callable[[], None] = lambda: None) -> None:
    """Concatenate pieces into `prefix`.bin and .idx, byte by byte as one writer would have written them. Memory does
    not grow with them. The index appears last.

    Args:
        between: called for each block; what it raises ends the work, which is then to be done anew.
    """
    data, index = bin_path(prefix), idx_path(prefix)
    with _fresh(data) as (partial, file):
        for piece in pieces:
            _append(piece.data, file, between)
    partial.replace(data)
    sequences = sum(piece.lengths.count for piece in pieces)
    documents = sum(piece.ends.count for piece in pieces)
    with _fresh(index) as (partial, file):
        file.write(HEADER.pack(MAGIC, VERSION, code_of(dtype), sequences, documents + 1))
        for lengths in _all(pieces, "lengths", between):
            file.write(lengths.data)
        place, itemsize = 0, np.dtype(dtype).itemsize
        for lengths in _all(pieces, "lengths", between):
            ends = place + np.cumsum(lengths, dtype=np.int64) * itemsize
            file.write(np.ascontiguousarray(np.concatenate([[place], ends[:-1]]), dtype="<i8").data)
            place = int(ends[-1])
        file.write(np.zeros(1, dtype="<i8").data)
        before = 0
        for piece in pieces:
            for ends in _all([piece], "ends", between):
                file.write(np.ascontiguousarray(ends + before, dtype="<i8").data)
            before += piece.lengths.count
    partial.replace(index)
    sync(index.parent)


def _all(
    pieces: list[Sequences], which: Literal["lengths", "ends"], between: Callable[[], None]
) -> Iterator[np.ndarray]:
    for piece in pieces:
        for block in (piece.lengths if which == "lengths" else piece.ends).blocks():
            between()
            yield block


class _fresh:  # noqa: N801 - used as a function
    """A new file beside `path`, on disk when the block ends."""

    def __init__(self, path: Path) -> None:
        self.partial = path.with_name(path.name + ".partial")

    def __enter__(self) -> tuple[Path, BinaryIO]:
        self.file = self.partial.open("wb")
        return self.partial, self.file

    def __exit__(self, kind: object, *exception: object) -> None:
        self.file.flush()
        if kind is None:
            os.fsync(self.file.fileno())
        self.file.close()


def _append(path: Path, file: BinaryIO, between: Callable[[], None]) -> None:
    with path.open("rb") as part:
        while block := part.read(_COPY_BYTES):
            between()
            file.write(block)
