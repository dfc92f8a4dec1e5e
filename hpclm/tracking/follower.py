"""Passes the rows of a metrics file on, as they come."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from hpclm.tracking.tracker import Sink

_MOST = 1 << 62


class Follower:
    """Reads what is new at each `pass_on`.

    A resumed run replaces the file by one without the steps that it repeats; the curve then begins anew, so that there
    is one.
    """

    def __init__(self, metrics: Path, open_sink: Callable[[], Sink]) -> None:
        self.metrics, self.open_sink = metrics, open_sink
        self.sink: Sink | None = None
        self.file: int | None = None
        self.offset = 0

    def pass_on(self) -> int:
        """How many rows were new. Raises what the sink raises."""
        try:
            with self.metrics.open("rb") as file:
                facts = os.fstat(file.fileno())
                if self.sink is None or facts.st_ino != self.file or facts.st_size < self.offset:
                    self.close()
                    self.sink, self.file, self.offset = self.open_sink(), facts.st_ino, 0
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return 0
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        count = 0
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # of a rank that died as it wrote
                continue
            if _is_row(row):
                self.sink.add(row)
                count += 1
        if count:
            self.sink.flush()
        return count

    def close(self) -> None:
        if self.sink is not None:
            self.sink.close()
        self.sink = None


def _is_row(row: object) -> bool:
    """As Progress.metric writes it, and no damaged one."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("kind"), str)
        and type(row.get("step")) is int
        and abs(row["step"]) < _MOST
        and isinstance(row.get("time"), float)
    )
