"""Passes the rows of a stage's metrics on, as they come."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpclm.core.layout import StagePaths
from hpclm.tracking.tracker import Sink

_MOST = 1 << 62


class _ReplacedError(Exception):
    """The file is another one than before."""


class _Tail:
    """What is new in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: int | None = None
        self.offset = 0

    def rows(self) -> list[dict[str, Any]]:
        """Whole rows since the last call. Raises _ReplacedError."""
        try:
            facts = self.path.stat()
            if (facts.st_ino, facts.st_size) == (self.file, self.offset):
                return []  # spares a shared file system the opening
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if self.file not in (None, facts.st_ino) or facts.st_size < self.offset:
                    raise _ReplacedError
                self.file = facts.st_ino
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [row for line in whole.splitlines() if (row := _row(line)) is not None]


class Follower:
    """Reads what is new at each `pass_on`: of the training's metrics, and of the devices' files beside them.

    A resumed run replaces the training's file by one without the steps that it repeats; the curve then begins anew, so
    that there is one.
    """

    def __init__(self, stage: StagePaths, open_sink: Callable[[], Sink]) -> None:
        self.stage, self.open_sink = stage, open_sink
        self.sink: Sink | None = None
        self.note = ""
        self.tails: dict[Path, _Tail] = {}

    def pass_on(self) -> int:
        """How many rows were new. Raises what the sink raises, and then `begin_anew` is for the next try."""
        try:
            rows = self._news()
        except _ReplacedError:
            self.close()
            self.tails.clear()
            rows = self._news()
        if not rows:
            return 0
        if self.sink is None:
            self.sink = self.open_sink()
            self.note = self.sink.note
        for row in rows:
            self.sink.add(row)
        self.sink.flush()
        return len(rows)

    def begin_anew(self) -> None:
        """After a failure: the next `pass_on` opens the curve again and gives it every row."""
        sink, self.sink = self.sink, None
        self.tails.clear()
        with contextlib.suppress(Exception):  # it has failed already
            if sink is not None:
                sink.close()

    def close(self) -> None:
        if self.sink is not None:
            self.sink.close()
        self.sink = None

    def _news(self) -> list[dict[str, Any]]:
        paths = [self.stage.metrics, *self.stage.all_device_metrics()]
        rows = [row for path in paths for row in self.tails.setdefault(path, _Tail(path)).rows()]
        return sorted(rows, key=lambda row: row["time"])


def _row(line: bytes) -> dict[str, Any] | None:
    """As Progress.metric writes it; None for a damaged one, of a rank that died as it wrote."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_one = (
        isinstance(row, dict)
        and isinstance(row.get("kind"), str)
        and type(row.get("step")) is int
        and abs(row["step"]) < _MOST
        and isinstance(row.get("time"), float)
    )
    return row if is_one else None
