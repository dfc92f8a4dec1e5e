"""Predictions written as they come, so that an evaluation that is stopped goes on where it was.

One rank of a replica appends them. What is there already counts only if it was made in the same way
(`made-from.json`): of the same rows, model, prompts and settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import DamagedError
from hpclm.core.files import open_file, write_text
from hpclm.core.layout import StagePaths
from hpclm.core.records import to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.formats.checkpoint_manifest import sha256_of

_SYNC_S = 5.0
# What may differ between two jobs of one evaluation.
_APART = ("run", "stage_dir", "parallel", "recovery", "checkpoint", "needs", "backends")


def key_of(spec: object, files: Iterable[str | None], examples: int, sources: Iterable[Path | None]) -> str:
    """What predictions depend on, as a digest.

    Args:
        spec: the stage's.
        files: the rows' and the tokenizer's.
        sources: the checkpoints or archives that make them.
    """
    settings = {name: value for name, value in to_dict(spec).items() if name not in _APART}
    read = [_facts(Path(name)) for name in files if name]
    facts = json.dumps([settings, read, [_made_by(one) for one in sources], examples])
    return hashlib.sha256(facts.encode()).hexdigest()


def _made_by(source: Path | None) -> object:
    """The contents of a checkpoint, whose manifest has every file's checksum; of anything else its size and time."""
    if source is None:
        return None
    manifest = CheckpointFolder(source).manifest
    return sha256_of(manifest) if manifest.is_file() else _facts(source)


def _facts(path: Path) -> list[object]:
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def answered(paths: StagePaths, key: str, wanted: list[int]) -> set[int]:
    """Of the `wanted` rows those in the predictions so far; all others are removed. For one rank, before any writes."""
    try:
        known = (read_sealed(paths.made_from) or {}).get("key") == key
    except (DamagedError, OSError):
        known = False
    if not known:
        shutil.rmtree(paths.predictions, ignore_errors=True)
        write_sealed(paths.made_from, {"key": key})
        return set()
    files = sorted(paths.predictions.glob("rank-*.jsonl"))
    lines = {file: _lines_of(file) for file in files}
    there = set(wanted)
    kept: set[int] = set()
    for file, rows in lines.items():
        own = []
        for index, line in rows:
            if index is not None and index in there and index not in kept:
                kept.add(index)
                own.append(line)
        if len(own) < len(rows):
            write_text(file, b"".join(own).decode())
    return kept


def _lines_of(file: Path) -> list[tuple[int | None, bytes]]:
    """The lines of a file with the row of each; None for one that is torn or damaged."""
    with open_file(file) as stream:
        return [(_index_in(line), line) for line in stream]


def _index_in(line: bytes) -> int | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    index = row.get("index") if isinstance(row, dict) and line.endswith(b"\n") else None
    return index if type(index) is int else None


@dataclass
class Writer:
    """Appends the rows of batches to a replica's file. `active`: whether this rank is the one that writes."""

    path: Path
    active: bool

    def __enter__(self) -> Writer:
        self.synced = time.monotonic()
        if self.active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.active:
            os.fsync(self.handle)
            os.close(self.handle)

    def add(self, rows: list[dict[str, Any]]) -> None:
        if not self.active:
            return
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        while data:
            data = data[os.write(self.handle, data) :]
        if time.monotonic() - self.synced > _SYNC_S:
            os.fsync(self.handle)
            self.synced = time.monotonic()
