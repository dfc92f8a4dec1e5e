"""Reads rows of instructions: JSONL (also .gz), a JSON list, parquet. Without torch."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.data.instructions.instruction_records import Record, RecordError, record
from hpclm.data.rows import kind_of

MAX_ROW_BYTES = 16 << 20
_MAX_JSON_BYTES = 4 << 30
_MEND_JSON = 'write one object a line, as {"instruction": …, "output": …}'


def records(paths: list[str], data: InstructionData, *, learns: bool) -> Iterator[Record]:
    """Every row of the files. Raises DataError, with file and line, at the first that is wrong."""
    for path in paths:
        count = 0
        for where, row in rows(Path(path)):
            count += 1
            try:
                yield record(row, where, data, learns=learns)
            except RecordError as error:
                raise DataError(f"{where}: {error}") from None
        if not count:
            raise DataError(f"{path}: contains no rows")


def rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Each row with its file and line (or number). Raises DataError."""
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
            return
        with open_file(path) as raw:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
            buffered = io.BufferedReader(cast(io.RawIOBase, stream))
            begin = buffered.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
            yield from _json_list(path, buffered) if begin.startswith(b"[") else _lines(path, buffered)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        mend = "copy it again" if path.suffix == ".gz" else "give a file of rows"
        raise DataError(f"{path}: cannot be read ({reason}); {mend}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _lines(path: Path, stream: BinaryIO) -> Iterator[tuple[str, dict[str, object]]]:
    # by bytes: JSON strings may contain U+2028 and similar characters unescaped
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > MAX_ROW_BYTES:
            raise DataError(f"{where}: is longer than {MAX_ROW_BYTES >> 20} MiB; write one row a line")
        if line.strip():
            yield where, _object(_parsed(line, where), where)


def _parsed(text: bytes, where: str) -> object:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text at byte {error.start}; convert the file") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        what = f"{error.msg} at {place}column {error.colno}"
        raise DataError(f"{where}: is not valid JSON ({what}); {_MEND_JSON}") from None
    except RecursionError:
        raise DataError(f"{where}: is not valid JSON of rows (nested too deeply); {_MEND_JSON}") from None
    except ValueError as error:
        what = "a number of thousands of digits" if "digits" in str(error) else _first_line(error)
        raise DataError(f"{where}: is not valid JSON ({what}); {_MEND_JSON}") from None


def _object(row: object, where: str) -> dict[str, object]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: is {kind_of(row)}, and is not an object; {_MEND_JSON}")
    return row


def _json_list(path: Path, stream: BinaryIO) -> Iterator[tuple[str, dict[str, object]]]:
    text = stream.read(_MAX_JSON_BYTES + 1)
    if len(text) > _MAX_JSON_BYTES:
        raise DataError(f"{path}: is a list of more than {_MAX_JSON_BYTES >> 30} GiB; write one object per line")
    found = _parsed(text, str(path))
    assert isinstance(found, list)
    for number, row in enumerate(found, start=1):
        where = f"{path} row {number}"
        yield where, _object(row, where)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: parquet needs the package pyarrow; install hpclm[data]") from None
    number = 0
    try:
        with open_file(path) as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a parquet file ({_first_line(error)}); copy it again") from None
    except (ValueError, ArithmeticError) as error:  # a value that Python cannot hold, in whatever column
        raise DataError(f"{path}: row {number + 1} or later cannot be read ({_first_line(error)}); mend it") from None
