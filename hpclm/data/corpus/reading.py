"""Documents of a segment, each with the place where it stands."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.core.nearest import nearest_name
from hpclm.data.corpus.inputs import Segment, parquet_library
from hpclm.data.documents import NotUtf8Error, file_documents

_SHOWN = 60
_ROWS = 256
_BUFFER = 1 << 20
_PACKED = 4096  # bytes of a packed file at a time: of the most repetitive text they are 128 MiB
BOM = b"\xef\xbb\xbf"


class BadLineError(ValueError):
    """A line that is not a document: what is wrong with it."""


@dataclass(frozen=True)
class Document:
    """The texts of one document, a list of sequences for each key."""

    texts: tuple[list[str], ...]


@dataclass
class Reader:
    """Reads segments.

    Attributes:
        keys: of the objects in JSONL and parquet; a plain text has one text.
        document: what one document of a plain text is.
        skip_bad: leave malformed lines out and count them in `bad`.
        on_bytes: given the bytes read as they are read.
    """

    keys: Sequence[str]
    document: Literal["file", "line", "paragraph"] = "file"
    skip_bad: bool = False
    on_bytes: Callable[[int], None] = lambda count: None
    bad: int = 0
    examples: list[str] = field(default_factory=list)

    def read(self, segment: Segment) -> Iterator[Document]:
        """Raises DataError for what cannot be read, and, unless it is skipped, for the first malformed line."""
        if segment.form == "jsonl":
            yield from self._lines(segment)
        elif segment.form == "parquet":
            yield from self._rows(segment)
        else:
            yield from self._texts(segment)

    def _lines(self, segment: Segment) -> Iterator[Document]:
        number = 0
        try:
            with Opened(segment.path) as file:
                stream = file.stream
                if segment.start:
                    stream.seek(segment.start - 1)
                    skipped = stream.readline()  # the line before ends here, or reaches into the segment
                    place = segment.start - 1 + len(skipped)
                else:
                    place = 0
                while segment.stop is None or place < segment.stop:
                    line = stream.readline()
                    if not line:
                        return
                    start, place, number = place, place + len(line), number + 1
                    self.on_bytes(file.taken(len(line)))
                    if start == 0:
                        line = line.removeprefix(BOM)
                    if not line.strip():
                        continue
                    try:
                        yield self._parsed(line)
                    except BadLineError as error:
                        self._refuse(f"{segment.path}:{_line_before(segment, number)}", str(error))
        except OSError as error:
            raise DataError(f"{segment.path}: cannot be read ({error})") from error

    def _parsed(self, line: bytes) -> Document:
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise BadLineError(f"not UTF-8 at byte {error.start} of the line") from None
        except (ValueError, RecursionError) as error:
            raise BadLineError(f"not JSON ({error})") from None
        if not isinstance(value, dict):
            raise BadLineError(f"not a JSON object, but {_shown(value)}")
        return self._taken(value)

    def _taken(self, value: dict[str, Any]) -> Document:
        found = []
        for key in self.keys:
            if key not in value:
                near = nearest_name(key, value)
                hint = f"did you mean {near}?" if near else f"it has {', '.join(map(str, value)) or 'none'}"
                raise BadLineError(f"has no key {key}; {hint} (--json-keys)")
            text = value[key]
            texts = text if isinstance(text, list) else [text]
            for one in texts:
                if not isinstance(one, str):
                    raise BadLineError(f"{key} is not text, but {_shown(one)}")
                if not _is_text(one):
                    raise BadLineError(f"{key} contains half of a surrogate pair, which no text has")
            found.append(texts)
        return Document(tuple(found))

    def _rows(self, segment: Segment) -> Iterator[Document]:
        parquet = parquet_library(segment.path)
        row = 0
        try:
            with parquet.ParquetFile(segment.path) as file:
                names = file.schema_arrow.names
                for key in self.keys:
                    if key not in names:
                        raise DataError(f"{segment.path}: has no column {key}; it has {', '.join(names)} (--json-keys)")
                first = sum(file.metadata.row_group(group).num_rows for group in range(segment.start))
                groups = list(range(segment.start, segment.stop or file.num_row_groups))
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=list(self.keys)):
                    self.on_bytes(batch.nbytes)
                    for value in batch.to_pylist():
                        row += 1
                        try:
                            yield self._taken(value)
                        except BadLineError as error:
                            self._refuse(f"{segment.path}: row {first + row}", str(error))
        except DataError:
            raise
        except Exception as error:  # the library's own, of no common class
            raise DataError(f"{segment.path}: cannot be read ({error})") from None

    def _texts(self, segment: Segment) -> Iterator[Document]:
        """With `skip_bad` a document that is not UTF-8 is left out, without it it is an error."""
        try:
            yield from self._text_documents(segment)
        except NotUtf8Error as error:
            raise DataError(f"{error}, or leave such documents out with --skip-bad") from None

    def _text_documents(self, segment: Segment) -> Iterator[Document]:
        errors = "surrogateescape" if self.skip_bad else "strict"
        with Opened(segment.path) as file:
            told = lambda count: self.on_bytes(file.taken(count))  # noqa: E731 - short
            found = file_documents(Path(segment.path), file.stream, self.document, told, errors=errors)
            for number, text in enumerate(found, start=1):
                if not text.strip():
                    continue
                if self.skip_bad and not _is_text(text):
                    self._refuse(f"{segment.path}: {self.document} {number}", "not UTF-8")
                else:
                    yield Document(([text],))

    def _refuse(self, where: str, why: str) -> None:
        if not self.skip_bad:
            raise DataError(f"{where}: {why}; mend it, or leave such lines out with --skip-bad")
        self.bad += 1
        if len(self.examples) < 3:
            self.examples.append(f"{where}: {why}")


class Opened:
    """A file, its bytes unpacked where it is packed, and how far it was read on disk. Raises DataError where it cannot
    be opened; reading raises OSError whatever packed it."""

    def __init__(self, path: str) -> None:
        try:
            self.raw = open_file(Path(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        self.stream: BinaryIO = self.raw
        self._told = 0
        if path.endswith(".gz"):
            self.stream = io.BufferedReader(_Unpacked(gzip.GzipFile(fileobj=self.raw)), _BUFFER)
        elif path.endswith(".zst"):
            try:
                import zstandard
            except ImportError:
                raise DataError(f"{path}: .zst files need the package zstandard; install hpclm[data]") from None
            self.stream = io.BufferedReader(_Unpacked(_Frames(self.raw, zstandard.ZstdDecompressor())), _BUFFER)

    def taken(self, count: int) -> int:
        """Bytes on disk that were read since the last call, given how many bytes of text were."""
        if self.stream is self.raw:
            return count
        told, self._told = self._told, self.raw.tell()
        return self._told - told

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()
        self.raw.close()


class _Frames:
    """The text of zstd frames. zstandard's own reader takes a file that ends within a frame for a whole one."""

    def __init__(self, raw: BinaryIO, decompressor: Any) -> None:
        self.raw, self.decompressor = raw, decompressor
        self.frame: Any = None
        self.packed, self.text = b"", memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        while not self.text:
            self.packed = self.packed or self.raw.read(_PACKED)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("it ends within a frame; it is not whole")
                return 0
            self.frame = self.frame or self.decompressor.decompressobj()
            self.text = memoryview(self.frame.decompress(self.packed))
            self.packed = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
        count = min(len(buffer), len(self.text))
        buffer[:count], self.text = self.text[:count], self.text[count:]
        return count


class _Unpacked(io.RawIOBase):
    """What a packed stream gives; every error of its library as OSError."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self.inner.readinto(buffer))
        except Exception as error:  # zlib and zstandard have classes of their own
            raise OSError(f"damaged: {error}") from None


def _is_text(text: str) -> bool:
    """Whether it has no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _line_before(segment: Segment, number: int) -> int:
    """The line in the file of the `number`-th line of a segment, from 1."""
    if not segment.start:
        return number
    lines, left = 0, segment.start
    with Opened(segment.path) as file:
        while left and (block := file.stream.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
        # a line that reaches into the segment belongs to the one before
        file.stream.seek(segment.start - 1)
        return lines + number + (file.stream.read(1) != b"\n")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
