"""`hpclm data merge`: several indexed data sets as one, their tokens copied and not made again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.core.indexed_files import bin_path, idx_path
from hpclm.core.records import to_dict
from hpclm.core.sealed import write_sealed
from hpclm.data.corpus.parts import Numbers, Sequences, join
from hpclm.data.corpus.tokenized_record import Counts, Tokenized, record_of
from hpclm.data.corpus.tokenizer_files import comparable, difference
from hpclm.formats.indexed_dataset import IndexHeader, read_header

_END_BYTES = 8


@dataclass(frozen=True)
class Merged:
    """What there is then."""

    prefix: str
    documents: int
    sequences: int
    tokens: int


def merge_pairs(prefixes: list[str], out: str) -> Merged:
    """One after the other, as Megatron-LM's tools/merge_datasets.py does (IndexedDatasetBuilder.add_index).

    Raises DataError where one is missing or damaged, where they are of different types or made by different
    tokenizers, and where the output is there.
    """
    headers = [read_header(prefix) for prefix in prefixes]
    for prefix, header in zip(prefixes, headers, strict=True):
        if header.multimodal:
            raise DataError(f"{prefix}: is multimodal, whose modes would be lost; merge it with Megatron-LM's tools")
        if header.dtype != headers[0].dtype:
            raise DataError(
                f"{prefix}: contains {header.dtype}, and {prefixes[0]} {headers[0].dtype}; tokenize one of them again"
            )
    records = [record_of(prefix) for prefix in prefixes]
    _same_tokenizer(prefixes, records)
    for path in (bin_path(out), idx_path(out)):
        if path.exists():
            raise DataError(f"{path}: already exists; give another --out or remove it")
    try:
        join([_piece(prefix, header) for prefix, header in zip(prefixes, headers, strict=True)], out, headers[0].dtype)
    except OSError as error:
        for path in (bin_path(out), idx_path(out)):
            with contextlib.suppress(OSError):
                path.with_name(path.name + ".partial").unlink()
        raise DataError(f"{out}: cannot be written ({error.strerror})") from error
    _record(records, out)
    found = read_header(out)
    return Merged(out, found.documents, found.sequences, found.tokens)


def _piece(prefix: str, header: IndexHeader) -> Sequences:
    index = idx_path(prefix)
    lengths = Numbers(index, "<i4", header.lengths_at, header.sequences)
    return Sequences(
        bin_path(prefix), lengths, Numbers(index, "<i8", header.documents_at + _END_BYTES, header.documents)
    )


def _same_tokenizer(prefixes: list[str], records: list[Tokenized | None]) -> None:
    """Of those that say which made them."""
    known = [(prefix, record.spec.tokenizer) for prefix, record in zip(prefixes, records, strict=True) if record]
    for prefix, made in known[1:]:
        first, spec = known[0]
        differ = difference(spec, made)
        if differ is None and comparable(spec, made):
            continue
        ours, theirs = differ or (spec.tokenizer_file or spec.vocab_file, made.tokenizer_file or made.vocab_file)
        raise DataError(
            f"{prefix}: was made with the tokenizer {theirs}, and {first} with {ours}; ids of two tokenizers cannot be "
            "one data set"
        )


def _record(records: list[Tokenized | None], out: str) -> None:
    """Where all have one, so that a plan knows the tokenizer of the whole, too."""
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return
    total = sum((record.counts for record in known), Counts())
    seconds = sum(record.seconds for record in known)
    made = replace(known[0], mark="", outputs=[out], counts=total, seconds=seconds)
    write_sealed(Path(f"{out}.tokenized.json"), to_dict(made))
