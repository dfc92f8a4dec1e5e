"""Predictions written as they come, so that an evaluation that is stopped goes on where it was.

A batch's rows are appended together by one rank of its replica. What is there already counts only if it was made in the
same way (`made-from.json`): of the same rows, model, prompts and settings.
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

from hpclm.core.errors import DamagedError
from hpclm.core.files import open_file, read_lines, write_text
from hpclm.core.layout import StagePaths
from hpclm.core.records import to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.spec import StageSpec

_SYNC_S = 5.0
# What may differ between two jobs of one evaluation.
_APART = ("run", "stage_dir", "parallel", "recovery", "checkpoint", "needs", "backends")


def key_of(spec: StageSpec, examples: int, sources: Iterable[Path | None]) -> str:
    """What predictions depend on, as a digest. `sources`: the checkpoints that make them."""
    assert spec.data is not None
    settings = {name: value for name, value in to_dict(spec).items() if name not in _APART}
    files = [[name, *_facts(Path(name))] for name in spec.data.test]
    named = [None if one is None else one.name for one in sources]
    facts = json.dumps([settings, files, named, examples], sort_keys=True, default=str)
    return hashlib.sha256(facts.encode()).hexdigest()


def _facts(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def answered(paths: StagePaths, key: str, batches: list[list[int]]) -> set[int]:
    """The rows whose batches are complete in the predictions so far; all others are removed. For one rank, before any
    writes. `batches`: the rows of each batch."""
    try:
        known = (read_sealed(paths.made_from) or {}).get("key") == key
    except (DamagedError, OSError):
        known = False
    if not known:
        shutil.rmtree(paths.predictions, ignore_errors=True)
        write_sealed(paths.made_from, {"key": key})
        return set()
    files = sorted(paths.predictions.glob("rank-*.jsonl"))
    there = {row["index"] for file in files for row in read_lines(file) if isinstance(row.get("index"), int)}
    complete = {index for batch in batches if there.issuperset(batch) for index in batch}
    seen: set[int] = set()
    for file in files:
        _keep(file, complete, seen)
    return complete


def _keep(file: Path, wanted: set[int], seen: set[int]) -> None:
    """Remove lines that are torn, of other rows, or of rows seen before."""
    with open_file(file) as stream:
        lines = stream.read().decode(errors="replace").splitlines(keepends=True)
    kept = []
    for line in lines:
        index = _index_in(line)
        if index in wanted and index not in seen:
            seen.add(index)
            kept.append(line)
    if len(kept) < len(lines):
        write_text(file, "".join(kept))


def _index_in(line: str) -> int | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    index = row.get("index") if isinstance(row, dict) and line.endswith("\n") else None
    return index if isinstance(index, int) else None


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
