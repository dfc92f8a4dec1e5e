"""Files that a configuration names. These tools read paths from where they are started, mostly the folder of their
repository, so a path is looked for beside the configuration and then in the folders above it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hpclm.core.files import open_file

_ABOVE = 4
_MAX_JSON = 4 << 20
_MAX_ROWS_FILE = 64 << 20
_MAX_LINE = 4 << 20


def is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def located(folder: Path, text: str) -> str:
    """The path as it is from `folder`: in the nearest of this folder and those above it where something is there, else
    unchanged."""
    if text.startswith(("/", "~")) or is_there(folder / text):
        return text
    for steps in range(1, _ABOVE + 1):
        up = os.path.join(*[os.pardir] * steps, text)  # noqa: PTH118 - Path would keep no leading ./
        if is_there(folder / up):
            return up
    return text


def json_object(path: Path) -> dict[str, Any]:
    """A small JSON file. Raises ValueError, which says what is wrong with it."""
    try:
        with open_file(path) as stream:
            raw = stream.read(_MAX_JSON + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if len(raw) > _MAX_JSON:
        raise ValueError(f"is larger than {_MAX_JSON >> 20} MiB")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


@dataclass(frozen=True)
class Glimpse:
    """The keys of a file's first row, and its number of rows; None where that is above the limit or was not read."""

    keys: frozenset[str] = frozenset()
    rows: int | None = None


def glimpse(path: Path, limit: int = 0) -> Glimpse:
    """Of JSON and JSONL; nothing of other files."""
    if path.suffix not in (".json", ".jsonl"):
        return Glimpse()
    try:
        with open_file(path) as stream:
            begin = stream.read(1 << 10).lstrip(b"\xef\xbb\xbf \t\r\n")
            stream.seek(0)
            if begin.startswith(b"["):
                raw = stream.read(_MAX_ROWS_FILE + 1)
                rows = json.loads(raw) if len(raw) <= _MAX_ROWS_FILE else []
                found = Glimpse(_keys(rows[0]), len(rows)) if rows else Glimpse()
            else:
                first = stream.readline(_MAX_LINE)
                more = sum(1 for line in islice(iter(lambda: stream.readline(_MAX_LINE), b""), limit) if line.strip())
                found = Glimpse(_keys(json.loads(first)), 1 + more)
    except (OSError, ValueError, RecursionError):
        return Glimpse()
    return found if found.rows is not None and found.rows <= limit else Glimpse(found.keys)


def _keys(row: object) -> frozenset[str]:
    return frozenset(key for key, value in row.items() if value) if isinstance(row, dict) else frozenset()
