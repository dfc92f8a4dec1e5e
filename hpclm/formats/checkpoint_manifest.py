"""`manifest.json` of a checkpoint: every piece of every tensor, and the files' checksums. Without torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hpclm.core import heartbeat
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file, read_json
from hpclm.core.records import from_dict

FORMAT = "hpclm-checkpoint"
FORMAT_VERSION = 1
_HASH_BLOCK = 1 << 22


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
        raw = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the checkpoint is damaged") from error
    if raw is None:
        raise CheckpointError(f"{path}: missing: not a checkpoint, or its writing never finished")
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not an hpclm checkpoint")
    if raw.get("version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {raw.get('version')}; this hpclm reads {FORMAT_VERSION}")
    try:
        return from_dict(Manifest, raw, where=str(path))
    except ValueError as error:
        raise CheckpointError(f"{error}; the checkpoint is damaged") from None


def damage(directory: Path, *, share: tuple[int, int] = (0, 1)) -> str | None:
    """A description of what is wrong with a checkpoint, or None.

    Args:
        share: (k, n) checks every n-th file from the k-th on, so that n ranks check a checkpoint together.
    """
    try:
        files = {inside(directory, name): file for name, file in read_manifest(directory).files.items()}
    except CheckpointError as error:
        return str(error)
    first, step = share
    for path, expected in list(files.items())[first::step]:
        if not path.is_file():
            return f"{path}: missing"
        if path.stat().st_size != expected.bytes:
            return f"{path}: {path.stat().st_size} bytes, expected {expected.bytes}"
        if sha256_of(path) != expected.sha256:
            return f"{path}: its contents have changed (sha256 differs)"
    return None


def is_altered(path: Path) -> bool:
    """Whether a file of a checkpoint is not what the manifest next to it says; False where none says anything of it."""
    try:
        stored = read_manifest(path.parent).files.get(path.name)
    except CheckpointError:
        return False
    return stored is not None and sha256_of(path) != stored.sha256


def inside(directory: Path, name: str) -> Path:
    if Path(name).name != name:
        raise CheckpointError(
            f"{CheckpointFolder(directory).manifest}: the file name {name!r} points outside the checkpoint"
        )
    return directory / name


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(_HASH_BLOCK):
            heartbeat.beat()
            digest.update(block)
    return digest.hexdigest()
