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
    try:
        with open_file(path) as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER:
                raise ValueError("its header is too large")
            found = json.loads(stream.read(size))
        tensors = ((name, one) for name, one in found.items() if name != "__metadata__")
        return {name: from_dict(Entry, one, ignore_unknown=True, where=name) for name, one in tensors}
    except (OSError, ValueError, struct.error, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
