"""JSON objects that carry their own checksum: what a crash, a full disk or an editor has damaged is not used.

Standard library only. A file without a checksum, of an earlier version, is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpclm.core.errors import DamagedError
from hpclm.core.files import finite, open_file, write_json

SEAL = "sha256_of_rest"


def write_sealed(path: Path, value: Mapping[str, Any], *, indent: int | None = 2, seal: bool = True) -> None:
    """`write_json` of an object and its checksum; without one (`seal`) for a reader of an earlier version."""
    write_json(path, _sealed(value) if seal else finite(dict(value)), indent=indent)


def sealed_line(value: Mapping[str, Any]) -> str:
    """What `write_sealed` writes, in one line."""
    return json.dumps(_sealed(value), ensure_ascii=True) + "\n"


def _sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(finite(dict(value)), ensure_ascii=False))
    return {**plain, SEAL: _digest(plain)}


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The object without its checksum; None where there is no file.

    Raises DamagedError for anything but a whole one, OSError where it cannot be read.
    """
    try:
        with open_file(path) as stream:
            data = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: damaged ({len(data)} bytes that are not a JSON object)")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _digest(value):
        raise DamagedError(f"{path}: damaged (its contents have changed since it was written)")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
