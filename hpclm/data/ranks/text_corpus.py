"""Text to pre-train on, tokenised once into Megatron's indexed format (.bin and .idx)."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpclm.core import heartbeat
from hpclm.core.errors import DamagedError, DataError
from hpclm.core.files import sync
from hpclm.core.logging import log
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.spec import StageSpec
from hpclm.data.corpus.parts import PartFiles, PartWriter, merge
from hpclm.data.documents import documents, split, text_files
from hpclm.data.tokenizers import Tokenizer, load_tokenizer
from hpclm.formats.checkpoint_manifest import StoredFile, inside, sha256_of
from hpclm.formats.indexed_dataset import dtype_for, read_header

PREPARED = "prepared.json"
_BATCH = 256


@dataclass(frozen=True)
class Prepared:
    """`prepared.json`. `mark`: what the data was made from; `files`: what was written, by name."""

    mark: str
    files: dict[str, StoredFile] = field(default_factory=dict)


def prepare_text(spec: StageSpec, folder: Path) -> None:
    """Train or load the tokenizer and write `train` and `validation` (unless its fraction is 0) as indexed token files.
    For one rank, while the others wait. Documents are read one after another, twice where a tokenizer is learned.

    Done once: on a restart the files are reused if they were made from the same text with the same settings and are
    still what was written; else they are made anew. Raises DataError where there is too little text.
    """
    assert spec.text is not None
    files = text_files(spec.text)
    mark = _mark(spec, files)
    if _is_prepared(folder, mark):
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def parts() -> Iterator[tuple[str, str]]:
        return split(spec.text, documents(spec.text, files, heartbeat.beat)) if spec.text else iter(())

    if spec.tokenizer.kind == "train":
        train = (document for part, document in parts() if part == "train")
        tokenizer = Tokenizer.train(train, spec.tokenizer.vocab_size)
    else:
        tokenizer = load_tokenizer(spec.tokenizer, None if spec.base is None else Path(spec.base))
    tokenizer.check_fits(spec.model.padded_vocab_size)
    tokenizer.save(partial)
    for name, tokens in _write_indexed(partial, parts(), tokenizer).items():
        if tokens <= spec.text.seq_length:
            raise DataError(
                f"the {name} text has {tokens} tokens, less than one sample of text.seq_length "
                f"{spec.text.seq_length} + 1; give more text, a shorter seq_length"
                + (" or a larger text.validation_fraction" if name == "validation" else "")
            )
    files_made = {path.name: StoredFile(path.stat().st_size, sha256_of(path)) for path in sorted(partial.iterdir())}
    for name in files_made:
        sync(partial / name)
    prepared = to_dict(Prepared(mark, files_made))
    write_sealed(partial / PREPARED, prepared)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    sync(folder.parent)


def _is_prepared(folder: Path, mark: str) -> bool:
    """Whether the folder has what these settings give, every byte of it as it was written."""
    try:
        raw = read_sealed(folder / PREPARED)
        known = from_dict(Prepared, raw or {}, ignore_unknown=True)
    except (DamagedError, OSError, ValueError):
        return False
    if known.mark != mark or not known.files:
        return False
    for name, stored in known.files.items():
        path = inside(folder, name)
        if not path.is_file() or path.stat().st_size != stored.bytes or sha256_of(path) != stored.sha256:
            log(f"{path} is not as it was written; the data is prepared again")
            return False
    return True


def _mark(spec: StageSpec, files: list[Path]) -> str:
    """A key that changes whenever the tokens would: the settings, and each file's name, size and time."""
    assert spec.text is not None
    facts: list[object] = [repr(spec.text), repr(spec.tokenizer)]
    own = spec.tokenizer
    read = [Path(name) for name in (own.vocab_file, own.merges_file, own.tokenizer_file) if name]
    facts += [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in (*files, *read) if path.exists()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _Part:
    """`<folder>/<name>`.bin and .idx while they are written; documents are tokenised some at a time."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer) -> None:
        self.prefix, self.tokenizer, self.waiting, self.tokens = folder / name, tokenizer, list[str](), 0
        self.dtype = dtype_for(tokenizer.vocab_size)
        self.files = PartFiles(folder / f"{name}.parts", 0)
        self.files.folder.mkdir()
        self.writer = PartWriter(self.files, 0, self.dtype)

    def add(self, document: str) -> None:
        self.waiting.append(document)
        if len(self.waiting) == _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what waits, each document ended by the end token."""
        heartbeat.beat()
        documents = [[*ids, self.tokenizer.eos_id] for ids in self.tokenizer.encode_batch(self.waiting)]
        counts, owner = np.array(list(map(len, documents)), dtype=np.int64), np.arange(len(documents))
        flat = np.fromiter(itertools.chain.from_iterable(documents), dtype=self.dtype, count=int(counts.sum()))
        self.tokens += self.writer.add(flat, counts, owner, len(documents), None)
        self.waiting.clear()

    def close(self) -> int:
        self.flush()
        self.writer.close()
        merge([self.files], 0, str(self.prefix), self.dtype, heartbeat.beat)
        shutil.rmtree(self.files.folder)
        return self.tokens


def _write_indexed(folder: Path, parts: Iterator[tuple[str, str]], tokenizer: Tokenizer) -> dict[str, int]:
    """Write every part's documents; returns the number of tokens of each part."""
    open_parts: dict[str, _Part] = {}
    for name, document in parts:
        if name not in open_parts:
            open_parts[name] = _Part(folder, name, tokenizer)
        open_parts[name].add(document)
    return {name: part.close() for name, part in sorted(open_parts.items())}


class Windows:
    """Windows over the documents one after another (see `gpt_datasets.Samples`): every token is predicted once an
    epoch. They are in the text's order, which does not depend on how many are wanted."""

    def __init__(self, folder: Path, name: str, seq_length: int) -> None:
        self.seq_length = seq_length
        header = read_header(str(folder / name))
        self.tokens = np.memmap(folder / f"{name}.bin", dtype=header.dtype, mode="r")
        self.positions = torch.arange(seq_length)
        self.mask = torch.ones(seq_length)

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_length

    def __getitem__(self, number: int) -> dict[str, Any]:
        start = number * self.seq_length
        window = torch.from_numpy(self.tokens[start : start + self.seq_length + 1].astype(np.int64))
        return {"tokens": window[:-1], "labels": window[1:], "position_ids": self.positions, "loss_mask": self.mask}
