"""Checkpoints without an engine: one file, and a manifest with its size and checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.files import write_json
from hpclm.core.records import to_dict
from hpclm.formats.checkpoint_manifest import Manifest, StoredFile

SHARD = "shard-00000.safetensors"


def write_shard(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHARD).write_bytes(content)
    files = {SHARD: StoredFile(len(content), hashlib.sha256(content).hexdigest())}
    write_json(CheckpointFolder(folder).manifest, to_dict(Manifest(files, {}, {})))
