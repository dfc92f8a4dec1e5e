"""The files of a corpus, and the pieces of them that workers take one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.corpus_spec import CorpusSpec, Form
from hpclm.core.errors import DataError

FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
PACKED = (".gz", ".zst")
PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class Segment:
    """A part of one file: of lines the bytes from `start` to `stop`, of parquet its row groups; all of it where `stop`
    is None. A line belongs to the segment in which it begins."""

    path: str
    form: Form
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Piece:
    """What a worker takes at a time and writes as one part: about `PIECE_BYTES` of one or many files."""

    segments: tuple[Segment, ...]
    size: int


def find_files(inputs: Sequence[str], pattern: str | None, form: Form | None) -> list[tuple[Path, Form]]:
    """Files in the order given, those of a folder sorted. Raises DataError where there are none, or for a file whose
    name does not say what is in it."""
    found: dict[Path, Form] = {}
    for name in inputs:
        path = Path(name)
        try:
            is_folder = path.is_dir()
            if not is_folder and not path.exists():
                raise DataError(f"{path}: does not exist")
        except ValueError:
            raise DataError(f"{name!r}: not a path") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if not is_folder:
            found[path] = form or _form(path)
            continue
        inside = [(one, form or _named(one)) for one in _matching(path, pattern) if one.is_file()]
        fitting = {one: its_form for one, its_form in inside if its_form is not None}
        if not fitting:
            wanted = f"matches {pattern!r}" if pattern else f"ends in {', '.join(FORMS)} (or these and .gz or .zst)"
            raise DataError(f"{path}: no file in it {wanted}; give --pattern and --format")
        found.update(fitting)
    return list(found.items())


def _matching(folder: Path, pattern: str | None) -> list[Path]:
    if pattern is not None and (pattern.startswith("/") or ".." in pattern.split("/")):
        raise DataError(f"--pattern {pattern!r}: names in a folder are matched; give one as *.jsonl")
    try:
        return sorted(folder.rglob(pattern or "*"))
    except (ValueError, NotImplementedError):
        raise DataError(f"--pattern {pattern!r}: is no pattern; give one as *.jsonl") from None


def corpus_files(spec: CorpusSpec) -> list[tuple[Path, Form]]:
    """The files of a corpus. Raises DataError, also for keys that cannot be."""
    for key in spec.keys:
        if "/" in key or key in ("", ".", "..") or not key.isprintable():
            raise DataError(f"json key {key!r}: is part of the output's name, and cannot be")
    if len(set(spec.keys)) != len(spec.keys):
        raise DataError("json keys: one is named twice")
    files = find_files(spec.inputs, spec.pattern, spec.form)
    if any(form == "text" for _, form in files) and len(spec.keys) > 1:
        raise DataError("plain text has no keys; give one --json-keys name, which names the output, or none")
    return files


def _named(path: Path) -> Form | None:
    name = path.with_suffix("") if path.suffix in PACKED else path
    return FORMS.get(name.suffix)


def _form(path: Path) -> Form:
    form = _named(path)
    if form is None:
        raise DataError(
            f"{path}: its name does not say what it contains ({', '.join(FORMS)}, or these and .gz or .zst); "
            "give --format jsonl, parquet or text"
        )
    return form


def pieces(
    files: Sequence[tuple[Path, Form]], size: int | None = None, between: Callable[[], None] = lambda: None
) -> list[Piece]:
    """The files cut into pieces; those of lines can be cut anywhere, parquet between its row groups. `between`: called
    for each file."""
    size = size or PIECE_BYTES
    made: list[Piece] = []
    waiting: list[Segment] = []
    total = 0

    def close() -> None:
        nonlocal total
        if waiting:
            made.append(Piece(tuple(waiting), total))
        waiting.clear()
        total = 0

    for path, form in files:
        between()
        for segment, weight in _segments(path, form, size):
            if total + weight > size:
                close()
            waiting.append(segment)
            total += weight
    close()
    return made


def _segments(path: Path, form: Form, size: int) -> Iterator[tuple[Segment, int]]:
    whole = path.stat().st_size
    if form == "parquet":
        for group, weight in enumerate(_row_groups(path)):
            yield Segment(str(path), form, group, group + 1), weight
    elif form == "jsonl" and path.suffix not in PACKED and whole > size:
        count = -(-whole // size)
        for number in range(count):
            start, stop = whole * number // count, whole * (number + 1) // count
            yield Segment(str(path), form, start, stop), stop - start
    else:
        yield Segment(str(path), form), whole


def _row_groups(path: Path) -> list[int]:
    """Bytes of each row group."""
    parquet = parquet_library(path)
    try:
        with parquet.ParquetFile(path) as file:
            facts = file.metadata
            return [facts.row_group(group).total_byte_size for group in range(facts.num_row_groups)]
    except Exception as error:  # the library's own, of no common class
        raise DataError(f"{path}: not a parquet file ({error})") from None


def parquet_library(path: str | os.PathLike[str]):  # type: ignore[no-untyped-def] # it ships no types
    """pyarrow's parquet module. Raises DataError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: parquet files need the package pyarrow; install hpclm[data]") from None
    return parquet
