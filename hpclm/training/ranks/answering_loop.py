"""Answering rows, whatever the engine: predictions are written as they come, and a job that is stopped goes on where it
was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hpclm.core import heartbeat
from hpclm.core.errors import DataError
from hpclm.core.files import read_lines
from hpclm.core.layout import StagePaths
from hpclm.core.logging import log
from hpclm.data.answered_rows import Writer, answered
from hpclm.data.prediction_rows import TOKENS
from hpclm.training.ranks.first_rank import on_first_rank
from hpclm.worker.report import Progress, StoppedError
from hpclm.worker.signals import StopFlag

# Of the rows with these indices this replica's share, as they end.
Answers = Callable[[list[int]], Iterator[list[dict[str, Any]]]]


@dataclass(frozen=True)
class Replica:
    """Of the model: which, of how many, and whether this rank is the one of it that writes."""

    rank: int
    count: int
    writes: bool


class AnsweringLoop:
    """Answers the rows of a stage. Every method is collective."""

    def __init__(
        self, paths: StagePaths, replica: Replica, device: torch.device, progress: Progress, stop: StopFlag
    ) -> None:
        self.paths, self.replica, self.device, self.progress, self.stop = paths, replica, device, progress, stop

    def run(self, wanted: list[int], key: str, answers: Answers) -> int:
        """Answer the rows that have no answer yet and write predictions as they come.

        Args:
            wanted: indices of all rows.
            key: what the predictions depend on (`answered_rows.key_of`).

        Returns the number of tokens generated, over all replicas. Raises StoppedError on all ranks together when one
        was asked to stop.
        """
        tokens = 0
        done = self._answered(key, wanted)
        stream = answers([index for index in wanted if index not in done])
        count, going = len(done), True
        with Writer(self.paths.prediction(self.replica.rank), self.replica.writes) as writer:
            while going:
                rows = next(stream, None)
                writer.add(rows or [])
                tokens += sum(row[TOKENS] for row in rows or ())
                stops, going, new = self._agree(rows is not None, len(rows or ()) if writer.active else 0)
                count += new
                self.progress.update(phase="generating", step=count, total_steps=len(wanted))
                if stops and count < len(wanted):
                    raise StoppedError(f"stop requested; {count} of {len(wanted)} rows are answered")
        counts = [0] * dist.get_world_size()
        dist.all_gather_object(counts, tokens if writer.active else 0)
        return sum(counts)

    def _answered(self, key: str, wanted: list[int]) -> set[int]:
        """The rows that an earlier job of this evaluation has answered, the same on every rank."""
        found: list[set[int]] = [set()]

        def look() -> None:
            found[0] = answered(self.paths, key, wanted)

        on_first_rank(look)
        dist.broadcast_object_list(found, src=0)
        if dist.get_rank() == 0 and found[0]:
            log(f"{len(found[0])} rows are answered already")
        return found[0]

    def _agree(self, goes_on: bool, rows: int) -> tuple[bool, bool, int]:
        """Over all ranks: whether one was asked to stop, whether one goes on, and how many rows were answered."""
        sums = torch.tensor([float(self.stop.requested), float(goes_on), float(rows)], device=self.device)
        dist.all_reduce(sums)
        with heartbeat.waiting():
            stops, going, new = sums.tolist()
        return stops > 0, going > 0, int(new)

    def predictions(self, wanted: list[int]) -> list[dict[str, Any]]:
        """All replicas' predictions in the order of their indices, each once. Raises DataError where one is missing."""
        own = {self.paths.prediction(rank) for rank in range(self.replica.count)}
        files = sorted(own | set(self.paths.predictions.glob("rank-*.jsonl")))
        rows = {row["index"]: row for file in files for row in read_lines(file) if type(row.get("index")) is int}
        missing = [index for index in sorted(wanted) if index not in rows]
        if missing:
            raise DataError(
                f"{self.paths.predictions}: {len(missing)} of {len(wanted)} predictions are missing, the first of row "
                f"{missing[0] + 1}; remove the folder and resume the run to answer all rows again"
            )
        return [rows[index] for index in sorted(wanted)]
