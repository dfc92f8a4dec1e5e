"""What a corpus is tokenised to, and the work on one piece of it: the same for the command and for a stage's ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.errors import DataError
from hpclm.core.records import to_dict
from hpclm.data.corpus import encoding
from hpclm.data.corpus.inputs import Piece, Segment, corpus_files, pieces
from hpclm.data.corpus.parts import PartFiles, PartWriter, finish_part
from hpclm.data.corpus.reading import Document, Reader
from hpclm.data.corpus.tokenized_record import Counts
from hpclm.data.tokenizers import Tokenizer, load_tokenizer
from hpclm.formats.indexed_dataset import dtype_for

# Documents are encoded some at a time: enough to pay for the call, little enough for the memory.
_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 2048
_SAMPLES, _SAMPLE_BYTES = 16, 16 << 10
_RECHECK_BYTES = 32 << 10


@dataclass(frozen=True)
class Job:
    """A corpus cut into pieces. `mark`: of everything the tokens depend on; `encoder`: the one chosen."""

    spec: CorpusSpec
    pieces: list[Piece]
    mark: str
    dtype: str
    encoder: str
    notes: list[str]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def part(self, number: int) -> PartFiles:
        return PartFiles(self.parts_folder, number)

    @property
    def parts_folder(self) -> Path:
        # what another job has left under the same name is not this one's
        return self.spec.parts_folder / self.mark[:16]

    @property
    def joining(self) -> Path:
        """That outputs which are there were being made by this job."""
        return self.parts_folder / "joining"


def _nothing() -> None:
    """What is called between parts of long work, where nobody asks for it."""


def make_job(spec: CorpusSpec, between: Callable[[], None] = _nothing) -> Job:
    """Find the files, cut them, and choose the encoder on a sample of them. Raises DataError.

    Args:
        between: called again and again.
    """
    files = corpus_files(spec)
    between()
    cut = pieces(files, between=between)
    tokenizer = load_tokenizer(spec.tokenizer, None)
    chosen, notes = encoding.choose(
        tokenizer, spec.encoder, _sample(spec, cut, between), special_tokens=spec.special_tokens
    )
    facts = to_dict(spec)
    del facts["encoder"]
    own = spec.tokenizer
    read = [Path(name) for name in (own.vocab_file, own.merges_file, own.tokenizer_file) if name]
    found = [(path, path.stat()) for path in (*(path for path, _ in files), *read)]
    stats = [[str(path), facts_of.st_size, facts_of.st_mtime_ns] for path, facts_of in found]
    layout = [[segment.path, segment.start] for piece in cut for segment in piece.segments]
    mark = hashlib.sha256(json.dumps([facts, stats, layout]).encode()).hexdigest()
    return Job(spec, cut, mark, dtype_for(tokenizer.vocab_size), chosen, notes)


def _sample(spec: CorpusSpec, cut: list[Piece], between: Callable[[], None]) -> list[str]:
    """The first texts of some pieces, spread over all."""
    texts: list[str] = []
    for piece in cut[:: max(1, len(cut) // _SAMPLES)]:
        between()
        reader, size = Reader(spec.keys, spec.document, skip_bad=True), 0
        for document in _documents(reader, piece.segments):
            for found in document.texts:
                texts += [text[:_SAMPLE_BYTES] for text in found]
                size += sum(map(len, found))
            if size > _SAMPLE_BYTES:
                break
    return texts


def _documents(reader: Reader, segments: tuple[Segment, ...]):  # type: ignore[no-untyped-def] # an iterator
    for segment in segments:
        yield from reader.read(segment)


class Worker:
    """Tokenises pieces. Loads the tokenizer once.

    Args:
        on_progress: given the bytes, documents and tokens since the last call.
    """

    def __init__(self, job: Job, on_progress: Callable[[int, int, int], None]) -> None:
        self.job, self.spec, self.on_progress = job, job.spec, on_progress
        self.tokenizer: Tokenizer = load_tokenizer(job.spec.tokenizer, None)
        self.reference = encoding.Reference(self.tokenizer, special_tokens=job.spec.special_tokens)
        self.encoder = encoding.make_encoder(self.tokenizer, job.encoder, special_tokens=job.spec.special_tokens)

    def run(self, number: int) -> Counts:
        """Tokenise a piece, unless it has been. Raises DataError."""
        files, piece = self.job.part(number), self.job.pieces[number]
        known = files.counts()
        if known is not None:
            self.on_progress(piece.size, known.documents, known.tokens)
            return known
        files.folder.mkdir(parents=True, exist_ok=True)
        self.checked = False
        self.read_bytes = 0
        reader = Reader(self.spec.keys, self.spec.document, skip_bad=self.spec.skip_bad, on_bytes=self._on_bytes)
        writers = [PartWriter(files, key, self.job.dtype) for key in range(len(self.spec.keys))]
        counts = Counts()
        try:
            waiting: list[Document] = []
            size = 0
            for document in _documents(reader, piece.segments):
                waiting.append(document)
                size += sum(len(text) for texts in document.texts for text in texts)
                if size >= _BATCH_BYTES or len(waiting) >= _BATCH_DOCUMENTS:
                    counts += self._write(waiting, writers)
                    waiting, size = [], 0
            counts += self._write(waiting, writers)
        finally:
            for writer in writers:
                writer.close()
        counts += Counts(bad=reader.bad, examples=reader.examples)
        finish_part(files, counts)
        return counts

    def _on_bytes(self, count: int) -> None:
        self.read_bytes += count

    def _write(self, documents: list[Document], writers: list[PartWriter]) -> Counts:
        if not documents:
            return Counts()
        end = self.tokenizer.eos_id if self.spec.append_eod else None
        tokens = empty = text_bytes = 0
        for place, writer in enumerate(writers):
            texts = [text for document in documents for text in document.texts[place]]
            sizes = np.array([len(document.texts[place]) for document in documents], dtype=np.int64)
            owner = np.repeat(np.arange(len(documents)), sizes)
            flat, counts = self._encoded(texts)
            if self.spec.prepend_bos:
                flat, counts = _begun(flat, counts, owner, self.tokenizer.bos_id)
            tokens += writer.add(flat, counts, owner, len(documents), end)
            empty += len(documents) - len(np.unique(owner[counts > 0]))
            text_bytes += sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
        self.on_progress(self.read_bytes, len(documents), tokens)
        self.read_bytes = 0
        return Counts(len(documents), tokens, empty, 0, text_bytes)

    def _encoded(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not self.checked:
            self.checked = True
            self._check_again(texts)
        return self.encoder.encode(texts)

    def _check_again(self, texts: list[str]) -> None:
        """A faster encoder is compared with the reference at the beginning of every piece."""
        size, some = 0, list[str]()
        for text in texts:
            some.append(text[:_RECHECK_BYTES])
            size += len(text)
            if size > _RECHECK_BYTES:
                break
        where = encoding.disagreement(self.encoder, self.reference, some)
        if where is not None:
            raise DataError(
                f"{self.encoder.name} gives other tokens than {self.reference.name} for {where}; "
                f"tokenize again with --encoder {self.reference.name}"
            )


def _begun(flat: np.ndarray, counts: np.ndarray, owner: np.ndarray, begin: int) -> tuple[np.ndarray, np.ndarray]:
    """`begin` before each document that has tokens."""
    kept = np.flatnonzero(counts > 0)
    if not len(kept):
        return flat, counts
    first = kept[np.append(True, owner[kept][1:] != owner[kept][:-1])]
    starts = np.cumsum(counts) - counts
    counts = counts.copy()
    flat = np.insert(flat, starts[first], begin)
    counts[first] += 1
    return flat, counts
