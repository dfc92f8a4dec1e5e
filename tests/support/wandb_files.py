"""Reads a `.wandb` file: a LevelDB log (blocks of 32 KiB) of wandb's own protobuf records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

_BLOCK = 32768
_FIRST_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for data in _logged(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def _logged(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, parts = _FIRST_HEADER, b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + 7 + size > len(data):
            return
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""


def offline_run(folder: Path) -> Path:
    """The only run there, once its last record is in the file; a process of wandb's own writes it."""

    def whole() -> list[Path]:
        found = list(folder.glob("wandb/offline-run-*/*.wandb"))
        return [one for one in found if any(record.WhichOneof("record_type") == "exit" for record in records(one))]

    (path,) = wait_until("the end of wandb's file", whole)
    assert list(folder.glob("wandb/*")) == [path.parent]
    return path


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run, without what wandb adds."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if key not in ("_runtime", "_step")})
    return rows


def run_of(path: Path) -> Any:
    return next(one.run for one in records(path) if one.WhichOneof("record_type") == "run")


def config_of(path: Path) -> dict[str, Any]:
    updates = run_of(path).config.update
    return {item.key: json.loads(item.value_json) for item in updates if item.key != "_wandb"}
