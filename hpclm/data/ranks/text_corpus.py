"""Text to pre-train on, tokenised once into Megatron's indexed format (.bin and .idx)."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from hpclm.core import heartbeat
from hpclm.core.errors import DataError
from hpclm.core.files import read_object, write_json
from hpclm.core.spec import StageSpec, TextData
from hpclm.data.tokenizers import Tokenizer, load_tokenizer

PREPARED = "prepared.json"
_BATCH = 256


def prepare_text(spec: StageSpec, folder: Path) -> None:
    """Train or load the tokenizer and write `train` and `validation` (unless its fraction is 0) as indexed token files.
    For one rank.

    Done once: on a restart the files are kept if they were made from the same text in the same way. Raises DataError
    where there is too little text.
    """
    assert spec.text is not None
    files = text_files(spec.text)
    mark = _mark(spec, files)
    if (read_object(folder / PREPARED) or {}).get("mark") == mark:
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    train, validation = _split(spec.text, list(_documents(spec.text, files)))
    parts = {"train": train, "validation": validation} if validation else {"train": train}
    if spec.tokenizer.kind == "train":
        tokenizer = Tokenizer.train(train, spec.tokenizer.vocab_size)
    else:
        tokenizer = load_tokenizer(spec.tokenizer, None if spec.base is None else Path(spec.base))
    tokenizer.check_fits(spec.model.padded_vocab_size)
    tokenizer.save(partial)
    for name, documents in parts.items():
        tokens = _write_indexed(partial / name, documents, tokenizer)
        if tokens <= spec.text.seq_length:
            raise DataError(
                f"the {name} text has {tokens} tokens, less than one sample of text.seq_length "
                f"{spec.text.seq_length} + 1; give more text, a shorter seq_length"
                + (" or a larger text.validation_fraction" if name == "validation" else "")
            )
    write_json(partial / PREPARED, {"mark": mark})
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def text_files(text: TextData) -> list[Path]:
    """Every file meant by `paths` and `pattern`, sorted, so that each machine reads the same order."""
    found: list[Path] = []
    for root in map(Path, text.paths):
        if root.is_file():
            found.append(root)
        elif root.is_dir():
            found.extend(sorted(path for path in root.rglob(text.pattern) if path.is_file()))
        else:
            raise DataError(f"{root}: no such file or folder (text.paths)")
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(f"no file matches {text.pattern!r} in {', '.join(text.paths)} (text.pattern)")
    return found


def _mark(spec: StageSpec, files: list[Path]) -> str:
    """Changes whenever the tokens would: the settings, and each file's name, size and time."""
    assert spec.text is not None
    facts: list[object] = [repr(spec.text), repr(spec.tokenizer)]
    own = spec.tokenizer
    read = [Path(name) for name in (own.vocab_file, own.merges_file, own.tokenizer_file) if name]
    facts += [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in (*files, *read) if path.exists()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _documents(text: TextData, files: list[Path]) -> Iterator[str]:
    left = float("inf") if text.max_mib is None else text.max_mib * (1 << 20)
    for path in files:
        heartbeat.beat()
        try:
            content = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert it or narrow text.pattern") from None
        for document in _cut(content, text.document):
            if not document.strip():
                continue
            if left <= 0:
                return
            left -= len(document.encode())
            yield document


def _cut(content: str, document: str) -> list[str]:
    if document == "line":
        return content.split("\n")
    return re.split(r"\n(?:[ \t]*\n)+", content) if document == "paragraph" else [content]


def _split(text: TextData, documents: list[str]) -> tuple[list[str], list[str]]:
    """The fraction of the documents for validation, evenly spread; one at least, the last, unless the fraction is 0."""
    fraction = text.validation_fraction
    if fraction == 0:
        return documents, []
    if len(documents) < 2:
        raise DataError(
            f"{', '.join(text.paths)}: {len(documents)} document in the text, 2 are needed to keep one for validation; "
            "set text.document to paragraph or line, or text.validation_fraction to 0"
        )
    train: list[str] = []
    validation: list[str] = []
    for place, document in enumerate(documents, start=1):
        # the rounding error of a product must not move a document from one part to the other
        due = math.floor(place * fraction + 1e-9) > len(validation)
        (validation if due else train).append(document)
    if not validation:
        validation.append(train.pop())
    return train, validation


def _write_indexed(prefix: Path, documents: list[str], tokenizer: Tokenizer) -> int:
    """Write `prefix`.bin and .idx, each document ended by the end token. Returns the number of tokens."""
    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    total = 0
    for start in range(0, len(documents), _BATCH):
        heartbeat.beat()
        for ids in tokenizer.encode_batch(documents[start : start + _BATCH]):
            ids.append(tokenizer.eos_id)
            builder.add_document(np.array(ids, dtype=dtype), [len(ids)])
            total += len(ids)
    builder.finalize(f"{prefix}.idx")
    return total


class TextDataset:
    """Windows of seq_length + 1 tokens over the concatenated documents; neighbours overlap by one token, so every
    token is predicted once an epoch (as megatron-core's GPTDataset, whose shuffled index our sampler replaces).
    """

    def __init__(self, folder: Path, spec: StageSpec, name: str) -> None:
        assert spec.text is not None
        self.seq_length = spec.text.seq_length
        indexed = IndexedDataset(str(folder / name))
        # documents lie one after another in the file, so the whole of it is one array of tokens
        self.tokens = np.memmap(f"{folder / name}.bin", dtype=indexed.index.dtype, mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.seq_length

    def __getitem__(self, number: int) -> np.ndarray:
        """Tokens [seq_length + 1] of the vocabulary's integer type."""
        start = number * self.seq_length
        return self.tokens[start : start + self.seq_length + 1]
