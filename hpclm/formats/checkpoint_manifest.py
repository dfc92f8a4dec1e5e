"""`manifest.json` of a checkpoint: every piece of every tensor, and the files' checksums. Without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.records import from_dict

FORMAT = "hpclm-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: its name in a file, and where it begins in the whole tensor."""

    file: str
    name: str
    offset: list[int]
    shape: list[int]


@dataclass
class StoredTensor:
    """A whole tensor and its pieces, which do not overlap."""

    dtype: str
    shape: list[int]
    pieces: list[Piece]


@dataclass(frozen=True)
class StoredFile:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checkpoint. `state`: what the training saved beside the tensors."""

    files: dict[str, StoredFile]
    tensors: dict[str, StoredTensor]
    state: dict[str, object]
    format: str = FORMAT
    version: int = FORMAT_VERSION


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a complete checkpoint. Raises CheckpointError if there is none or it is not hpclm's."""
    path = CheckpointFolder(directory).manifest
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing: not a checkpoint, or its writing never finished") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the checkpoint is damaged") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not an hpclm checkpoint")
    if raw.get("version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {raw.get('version')}; this hpclm reads {FORMAT_VERSION}")
    try:
        return from_dict(Manifest, raw, where=str(path))
    except ValueError as error:
        raise CheckpointError(f"{error}; the checkpoint is damaged") from None
