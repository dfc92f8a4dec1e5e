"""How a data set's files are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpclm.core.errors import DataError
from hpclm.core.files import write_text


def write_file(path: Path, text: str) -> Path:
    """Replace `path` with `text` atomically; returns it. Raises DataError where it cannot be written."""
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); give another folder") from error
    return path


def row_line(row: dict[str, Any], *, escaped: bool = False) -> str:
    """A line of a JSONL file. `escaped`: in ASCII alone, with `\\uXXXX`, as NeMo's scripts write it."""
    return json.dumps(row, ensure_ascii=escaped) + "\n"


def write_rows(path: Path, rows: Iterable[dict[str, Any]], *, escaped: bool) -> Path:
    """A JSONL file of `row_line`s. Raises DataError where there is no row, or the file cannot be written."""
    lines = [row_line(row, escaped=escaped) for row in rows]
    if not lines:
        raise DataError(f"{path.name}: would be empty, since the source has too few rows; use the files as published")
    return write_file(path, "".join(lines))
