"""Documents of plain text, one after another: what is read is never held whole, however large the files are."""

from __future__ import annotations

import codecs
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.core.spec import TextData

_CHUNK_BYTES = 4 << 20
_LINE = re.compile(r"\n")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


class NotUtf8Error(DataError):
    """A plain text that is not UTF-8."""


def text_files(text: TextData) -> list[Path]:
    """Every file meant by `paths` and `pattern`, sorted: each machine reads the same order. Raises DataError."""
    found: list[Path] = []
    for root in map(Path, text.paths):
        if root.is_file():
            found.append(root)
        elif root.is_dir():
            found.extend(sorted(path for path in root.rglob(text.pattern) if path.is_file()))
        else:
            raise DataError(f"{root}: does not exist (text.paths)")
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(f"no file matches {text.pattern!r} in {', '.join(text.paths)} (text.pattern)")
    return found


def documents(text: TextData, files: list[Path], on_file: Callable[[], None]) -> Iterator[str]:
    """The documents of all files in order, up to `max_mib`. `on_file` is called at each file and chunk.

    Raises DataError for a file that cannot be read or is not UTF-8.
    """
    left = float("inf") if text.max_mib is None else text.max_mib * (1 << 20)
    for path in files:
        try:
            stream = open_file(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        with stream:
            for document in file_documents(path, stream, text.document, lambda count: on_file()):
                if not document.strip():
                    continue
                if left <= 0:
                    return
                left -= len(document.encode())
                yield document


def file_documents(
    path: Path, stream: BinaryIO, document: str, on_bytes: Callable[[int], None], *, errors: str = "strict"
) -> Iterator[str]:
    """The documents of one file's text: all of it, its lines or its paragraphs. `on_bytes` is given what was read.

    Args:
        errors: of decoding (`codecs`); `surrogateescape` keeps bytes that are not UTF-8 as halves of surrogate pairs.

    Raises DataError where it cannot be read or is not UTF-8.
    """
    return _cut(_chunks(path, stream, on_bytes, errors), document)


def split(text: TextData, found: Iterator[str]) -> Iterator[tuple[str, str]]:
    """("train" or "validation", document): the fraction for validation, evenly spread; at least one (the last), unless
    the fraction is 0. Raises DataError where there are too few documents.
    """
    fraction, place, validation = text.validation_fraction, 0, 0
    if fraction == 0:
        yield from (("train", document) for document in found)
        return
    held: str | None = None
    for place, document in enumerate(found, start=1):
        # the rounding error of a product must not move a document from one part to the other
        if math.floor(place * fraction + 1e-9) > validation:
            validation += 1
            yield "validation", document
            continue
        if held is not None:
            yield "train", held
        held = document  # the last one is validation's where nothing else is
    if place < 2:
        raise DataError(
            f"{', '.join(text.paths)}: {place} document in the text, 2 are needed to keep one for validation; "
            "set text.document to paragraph or line, or text.validation_fraction to 0"
        )
    if held is not None:
        yield ("train" if validation else "validation"), held


def _chunks(path: Path, stream: BinaryIO, on_bytes: Callable[[int], None], errors: str) -> Iterator[str]:
    """A file's text piece by piece, line ends as `\\n`."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors)
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    offset = lines = 0
    try:
        while True:
            data = stream.read(_CHUNK_BYTES)
            on_bytes(len(data))
            pending = len(utf8.getstate()[0])
            piece = decoder.decode(data, final=not data)
            offset += len(data)
            lines += data.count(b"\n")
            if piece:
                yield piece
            if not data:
                return
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        line = lines + data[: max(0, error.start - pending)].count(b"\n") + 1
        place = offset - pending + error.start
        raise NotUtf8Error(f"{path}:{line}: not UTF-8 at byte {place} of the file; convert it") from None


def _cut(chunks: Iterator[str], document: str) -> Iterator[str]:
    """Pieces of the text between lines or between blank lines; the whole of it as one document."""
    if document == "file":
        yield "".join(chunks)
        return
    pattern = _LINE if document == "line" else _BLANK_LINES
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        for match in pattern.finditer(rest):
            # blank lines at the end of what has been read may go on in the next chunk
            if document == "paragraph" and not rest[match.end() :].lstrip(" \t"):
                break
            yield rest[start : match.start()]
            start = match.end()
        rest = rest[start:]
    yield from pattern.split(rest)
