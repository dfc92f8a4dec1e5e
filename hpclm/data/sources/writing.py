"""How a data set's files are written."""

from __future__ import annotations

import json
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


def row_line(row: dict[str, Any]) -> str:
    """A line of a JSONL file."""
    return json.dumps(row, ensure_ascii=False) + "\n"
