"""The header of a safetensors file (huggingface/safetensors, README.md). Without torch."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file
from hpclm.core.records import from_dict

_MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]


def header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name. Raises CheckpointError."""
    return _read(path)[0]


def declared_size(path: Path) -> int:
    """The bytes that a safetensors file has according to its header. Raises CheckpointError."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Entry], int]:
    try:
        with open_file(path) as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER:
                raise ValueError("its header is too large")
            found = json.loads(stream.read(size))
        tensors = {name: one for name, one in found.items() if name != "__metadata__"}
        ends = (int(one["data_offsets"][1]) for one in tensors.values() if one.get("data_offsets"))
        entries = {name: from_dict(Entry, one, ignore_unknown=True, where=name) for name, one in tensors.items()}
        return entries, 8 + size + max(ends, default=0)
    except (OSError, ValueError, TypeError, LookupError, struct.error, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
