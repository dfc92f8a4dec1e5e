"""How a data set's files are written."""

from __future__ import annotations

from pathlib import Path

from hpclm.errors import DataError
from hpclm.runs.files import write_text


def write_file(path: Path, text: str) -> Path:
    """Replace `path` with `text` at once; returns it. Raises DataError where it cannot be written."""
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); give another folder") from error
    return path
