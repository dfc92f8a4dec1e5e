"""An instruction row, and the seed rows of a file: JSONL, or one JSON list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.data.rows import RowError, has_surrogate, kind_of, lines_of, parse

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class InstructionRow:
    """A row as alpaca's files have it; `input` may be empty."""

    instruction: str
    input: str
    output: str

    def line(self) -> str:
        """One line of JSONL."""
        value = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return json.dumps(value, ensure_ascii=False) + "\n"


def row_of(value: object) -> InstructionRow:
    """The row in a JSON value, also in the form of self-instruct's seed tasks, whose `instances` hold input and output.
    Raises RowError."""
    if not isinstance(value, dict):
        raise RowError(f'is {kind_of(value)}; a row must be an object such as {{"instruction": …, "output": …}}')
    inner = value
    if "instances" in value and "output" not in value:
        instances = value["instances"]
        if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
            raise RowError("'instances' must be a list of objects with input and output")
        inner = instances[0]
    instruction = _text(value, "instruction", needed=True)
    return InstructionRow(instruction, _text(inner, "input", needed=False), _text(inner, "output", needed=True))


def _text(row: dict[str, object], key: str, *, needed: bool) -> str:
    value = row.get(key)
    if value is None and not needed:
        return ""
    if key not in row:
        raise RowError(f"has no {key!r}; a row needs instruction and output")
    if not isinstance(value, str):
        raise RowError(f"{key!r} is {kind_of(value)}; write it as text in quotes")
    if has_surrogate(value):
        raise RowError(f"{key!r} has half of a surrogate pair, which is not a character; correct the \\u escape")
    if needed and not value.strip():
        raise RowError(f"{key!r} is empty; fill it, or remove the row")
    return value


def read_rows(path: Path) -> list[InstructionRow]:
    """Every row of a file. Raises DataError with file, line and what is wrong."""
    try:
        with open_file(path) as stream:
            begin = stream.read(1024)
            start = len(_BOM) if begin.startswith(_BOM) else 0
            stream.seek(start)
            if begin[start:].lstrip()[:1] == b"[":
                return list(_of_list(path, stream.read()))
            return [_of_line(path, number, line) for number, line in lines_of(stream)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _of_line(path: Path, number: int, line: bytes) -> InstructionRow:
    try:
        return row_of(parse(line))
    except RowError as error:
        raise DataError(f"{path}:{number}: {error}") from None


def _of_list(path: Path, data: bytes) -> Iterator[InstructionRow]:
    """The rows of one JSON list, each with the line that it begins on."""
    try:
        text = data.decode()
        json.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: is not UTF-8 text; convert the file") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not valid JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not valid JSON (a number too long, or nested too deeply)") from None
    decoder, place, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        while text[place] in " \t\r\n,":
            place += 1
        if text[place] == "]":
            return
        line, counted = line + text.count("\n", counted, place), place
        value, place = decoder.raw_decode(text, place)
        try:
            yield row_of(value)
        except RowError as error:
            raise DataError(f"{path}:{line}: {error}") from None
