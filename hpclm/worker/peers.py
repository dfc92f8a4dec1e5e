"""The other ranks of an attempt, where no process group joins them: their marks in the attempt's folder."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator

from hpclm.core import heartbeat
from hpclm.core.errors import PeerError
from hpclm.core.layout import AttemptPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.records import read_record

_POLL_S, _POLL_S_A_RANK = 0.1, 0.001


def pauses(first_s: float, most_s: float) -> Iterator[float]:
    """Seconds between two questions of a rank that waits: longer and longer, and each rank's own, for there may be
    thousands."""
    while True:
        yield first_s * random.uniform(0.5, 1.5)
        first_s = min(most_s, first_s * 1.2)


def wait_until_finished(
    attempt: AttemptPaths, ranks: Iterable[int], while_waiting: Callable[[], None] = lambda: None
) -> None:
    """Wait until these ranks have marked their work as finished. Raises PeerError if one has failed."""
    waiting = set(ranks)
    while waiting:
        # one listing, not a question for each; it makes an NFS client ask the server again, too
        there = set(attempt.root.iterdir())
        waiting = {rank for rank in waiting if attempt.finished(rank) not in there}
        refuse_failed(attempt, waiting)
        heartbeat.beat()
        while_waiting()
        if waiting:
            time.sleep(max(_POLL_S, _POLL_S_A_RANK * len(waiting)))


def refuse_failed(attempt: AttemptPaths, ranks: Iterable[int]) -> None:
    """Raises PeerError if one of these ranks has failed."""
    for rank in ranks:
        report = read_record(RankReport, attempt.rank(rank))
        if report is not None and report.ended_badly:
            raise PeerError(f"rank {rank} failed: {report.message}")
