"""What an indexed data set contains, and whether its index and its tokens agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpclm.core.errors import DataError, HpclmError
from hpclm.core.indexed_files import bin_path, idx_path
from hpclm.core.spec import TokenizerSpec
from hpclm.data.corpus.tokenized_record import record_of
from hpclm.data.tokenizers import Tokenizer, load_tokenizer
from hpclm.formats.indexed_dataset import IndexHeader, read_header

_BLOCK = 1 << 20
_COUNTED = 1 << 26  # lengths that are counted one by one


@dataclass(frozen=True)
class Sample:
    """A document. `text`: its beginning, special tokens written out; None without a tokenizer."""

    document: int
    tokens: int
    ids: list[int]
    text: str | None


@dataclass(frozen=True)
class Contents:
    """An indexed data set.

    Attributes:
        empty_documents: documents without tokens.
        lengths: of its sequences in tokens: shortest, quartiles, 99th percentile, longest, mean.
        largest_id, ends: of all tokens, where they were read: the largest id, and how many are the end token.
        tokenizer: where its tokens come from, if that is known.
    """

    prefix: str
    dtype: str
    documents: int
    sequences: int
    tokens: int
    empty_documents: int
    lengths: dict[str, float]
    samples: list[Sample] = field(default_factory=list)
    largest_id: int | None = None
    ends: int | None = None
    tokenizer: str | None = None


class IndexedReader:
    """Documents of an indexed data set, read as they are asked for. Raises DataError for one that is not whole."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.header: IndexHeader = read_header(prefix)
        index = idx_path(prefix)
        ends = self.header.documents + 1
        self.lengths = _map(index, "<i4", self.header.lengths_at, self.header.sequences)
        self.places = _map(index, "<i8", self.header.places_at, self.header.sequences)
        self.documents = _map(index, "<i8", self.header.documents_at, ends)
        self.data = _map(bin_path(prefix), self.header.dtype, 0, self.header.tokens)

    def document(self, number: int) -> np.ndarray:
        """Its tokens, all sequences one after the other."""
        first, stop = int(self.documents[number]), int(self.documents[number + 1])
        if first == stop:
            return np.empty(0, dtype=self.header.dtype)
        start = int(self.places[first]) // self.header.itemsize
        end = int(self.places[stop - 1]) // self.header.itemsize + int(self.lengths[stop - 1])
        return np.asarray(self.data[start:end])

    def check(self) -> None:
        """Lengths, places and documents agree. Raises DataError that names the first that does not."""
        index, place = idx_path(self.prefix), 0
        for start, lengths in _blocks(self.lengths):
            if (lengths < 0).any():
                bad = start + int(np.argmax(lengths < 0))
                raise DataError(f"{index}: damaged: sequence {bad} has {int(self.lengths[bad])} tokens")
            ends = place + np.cumsum(lengths, dtype=np.int64) * self.header.itemsize
            expected = np.concatenate([[place], ends[:-1]])
            wrong = self.places[start : start + len(lengths)] != expected
            if wrong.any():
                raise DataError(
                    f"{index}: damaged: sequence {start + int(np.argmax(wrong))} does not begin where the "
                    "one before it ends"
                )
            place = int(ends[-1])
        last = 0
        for start, ends in _blocks(self.documents):
            falls = np.diff(ends, prepend=last) < 0
            if falls.any() or ends[-1] > self.header.sequences or (start == 0 and ends[0] != 0):
                raise DataError(f"{index}: damaged: document {start + int(np.argmax(falls))} begins at no sequence")
            last = int(ends[-1])
        if last != self.header.sequences:
            raise DataError(f"{index}: damaged: the documents end at sequence {last} of {self.header.sequences}")


def _map(path: Path, dtype: str, offset: int, count: int) -> np.ndarray:
    if not count:
        return np.empty(0, dtype=dtype)
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(values), _BLOCK):
        yield start, np.asarray(values[start : start + _BLOCK])


def contents(prefix: str, tokenizer: Tokenizer | None, samples: int, shown: int, *, whole: bool) -> Contents:
    """What `prefix` contains. Raises DataError where it is damaged.

    Args:
        tokenizer: decodes the samples; None: the one it was tokenised with, where that is recorded.
        samples: documents to show, evenly spread, the beginning of each: `shown` tokens.
        whole: read every token.
    """
    reader = IndexedReader(prefix)
    reader.check()
    header = reader.header
    name = None
    if tokenizer is None:
        tokenizer, name = _recorded(prefix)
    step = max(1, header.documents // samples) if samples else 1
    numbers = range(0, header.documents, step)[:samples]
    largest, ends = _read_all(reader, tokenizer) if whole else (None, None)
    if tokenizer is not None and largest is not None and largest >= tokenizer.vocab_size:
        raise DataError(
            f"{bin_path(prefix)}: has the id {largest}, the tokenizer {tokenizer.vocab_size} entries; it is damaged, "
            "or from another tokenizer"
        )
    return Contents(
        prefix=prefix,
        dtype=header.dtype,
        documents=header.documents,
        sequences=header.sequences,
        tokens=header.tokens,
        empty_documents=sum(int((np.diff(ends_) == 0).sum()) for ends_ in _overlapping(reader.documents)),
        lengths=_quantiles(reader.lengths),
        samples=[_sample(reader, number, tokenizer, shown) for number in numbers],
        largest_id=largest,
        ends=ends,
        tokenizer=name,
    )


def _overlapping(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values) - 1, _BLOCK):
        yield np.asarray(values[start : start + _BLOCK + 1])


def _quantiles(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return {}
    longest = max(int(block.max()) for _, block in _blocks(lengths))
    counts = np.zeros(min(longest, _COUNTED) + 1, dtype=np.int64)
    total = 0
    for _, block in _blocks(lengths):
        counts += np.bincount(np.minimum(block, _COUNTED), minlength=len(counts))
        total += int(block.sum(dtype=np.int64))
    below = np.cumsum(counts)
    at = {"p25": 0.25, "median": 0.5, "p75": 0.75, "p99": 0.99}
    found = {name: float(np.searchsorted(below, share * below[-1])) for name, share in at.items()}
    shortest = float(np.argmax(counts > 0))
    return {"shortest": shortest, **found, "longest": float(longest), "mean": total / len(lengths)}


def _read_all(reader: IndexedReader, tokenizer: Tokenizer | None) -> tuple[int, int | None]:
    largest, ends = 0, 0
    for _, block in _blocks(reader.data):
        largest = max(largest, int(block.max()))
        if tokenizer is not None:
            ends += int((block == tokenizer.eos_id).sum())
    return largest, ends if tokenizer is not None else None


def _sample(reader: IndexedReader, number: int, tokenizer: Tokenizer | None, shown: int) -> Sample:
    tokens = reader.document(number)
    ids = [int(token) for token in tokens[:shown]]
    text = None
    if tokenizer is not None:
        if any(not 0 <= one < tokenizer.vocab_size for one in ids):
            raise DataError(
                f"{bin_path(reader.prefix)}: document {number} has ids that the tokenizer of "
                f"{tokenizer.vocab_size} entries does not have; it is damaged, or from another tokenizer"
            )
        text = tokenizer.shown(ids)
    return Sample(number, len(tokens), ids, text)


def _recorded(prefix: str) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that a record beside the data set names, if it is still there."""
    found = record_of(prefix)
    if found is None:
        return None, None
    own: TokenizerSpec = found.spec.tokenizer
    try:
        return load_tokenizer(own, None), own.tokenizer_file or own.vocab_file
    except HpclmError:
        return None, own.tokenizer_file or own.vocab_file
