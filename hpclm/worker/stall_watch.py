"""Detects hangs: a thread checks the heartbeat, writes every thread's stack to the run directory, and ends the rank.

A collective that one rank never joins keeps all others waiting for the whole of its timeout, and NCCL's may wait for
ever. All of them see that there is no progress; from its stack each reports whether it waits for others or is itself
stuck, so that the run can name the stuck rank. While all is well nothing is written except the time of one file, by
rank 0, which waiting ranks check: rank 0 may be busy alone, as when it tokenises a corpus.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.core import heartbeat
from hpclm.core.layout import AttemptPaths

if TYPE_CHECKING:
    from hpclm.worker.report import RankRecord

# Code in which a rank waits for others; anywhere else it is the rank that is stuck.
_WAITING = (
    "torch/distributed/",
    "megatron/core/tensor_parallel/",
    "megatron/core/pipeline_parallel/p2p_communication",
    "hpclm/worker/ranks/rendezvous",
    "hpclm/worker/ranks/preparation",
)
_LOOKS = 10


class StallWatch:
    """Ends the rank after `timeout_s` seconds (None: never) in which neither it nor rank 0 made progress."""

    def __init__(self, record: RankRecord, paths: AttemptPaths, rank: int, timeout_s: float | None) -> None:
        self.record, self.rank, self.timeout_s = record, rank, timeout_s or float("inf")
        self.stack, self.heartbeat_file = paths.stack(rank), paths.heartbeat
        self.flight_recorder = paths.flight_recorder
        self.stopped = threading.Event()
        self.looked = time.monotonic()
        self._stood_still_s = 0.0
        self.main = threading.main_thread().ident

    def start(self) -> None:
        if math.isinf(self.timeout_s):
            return
        self.looked = time.monotonic()
        threading.Thread(target=self._look, name="stall-watch", daemon=True).start()

    def stop(self) -> None:
        """The work is done: what remains is not watched."""
        self.stopped.set()

    def stood_still_s(self) -> float:
        """How long even the watch did not run, 0 if it did: the process or its node was suspended."""
        slept = time.monotonic() - self.looked
        if slept > self.timeout_s / 2 and not self.stopped.is_set():
            self._stood_still_s = slept
        return self._stood_still_s

    def _look(self) -> None:
        pause = min(30.0, self.timeout_s / _LOOKS)
        while not self.stopped.wait(pause):
            self.stood_still_s()
            self.looked = time.monotonic()
            if heartbeat.age_s() > self.timeout_s and self._rank_0_age_s() > self.timeout_s:
                self._end()
            if self.rank == 0 and heartbeat.age_s() < 2 * pause:
                with contextlib.suppress(OSError):
                    self.heartbeat_file.touch()

    def _rank_0_age_s(self) -> float:
        if self.rank == 0:
            return float("inf")
        try:
            return time.time() - self.heartbeat_file.stat().st_mtime
        except OSError:
            return float("inf")

    def _end(self) -> None:
        stood_still_s = self.stood_still_s()
        waiting = self._is_waiting() and not stood_still_s
        with contextlib.suppress(OSError):
            self._write_stacks()
        with contextlib.suppress(Exception):  # torch without NCCL, no group yet, a full disk
            self._dump_collectives()
        place = f"at {self._place()}"
        if stood_still_s:
            place = f"and did not run at all for {stood_still_s:.0f} s of them: the process was stopped"
        code = self.record.stalled(self.timeout_s, waiting, place, self.stack)
        print(f"no progress for {self.timeout_s:.0f} s; see {self.stack}", file=sys.stderr, flush=True)
        os._exit(code)

    def _write_stacks(self) -> None:
        self.stack.parent.mkdir(parents=True, exist_ok=True)
        with self.stack.open("w") as stream:
            what = f"rank {self.rank}: no progress for {heartbeat.age_s():.0f} s; every thread:"
            print(what, file=stream, flush=True)
            faulthandler.dump_traceback(stream, all_threads=True)

    def _dump_collectives(self) -> None:
        """What NCCL's flight recorder has, as torch writes it at its own, later, timeout: `torchfrtrace` reads it."""
        dumped = sys.modules["torch"]._C._distributed_c10d._dump_nccl_trace()
        Path(f"{self.flight_recorder}{self.rank}").write_bytes(dumped)

    def _frames(self) -> list[tuple[str, int]]:
        """File and line of every Python frame of the main thread, innermost first."""
        frame = sys._current_frames().get(self.main or 0)
        found = []
        while frame is not None:
            found.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        return found

    def _is_waiting(self) -> bool:
        return heartbeat.is_waiting() or any(part in file for file, _ in self._frames()[:8] for part in _WAITING)

    def _place(self) -> str:
        file, line = next(iter(self._frames()), ("?", 0))
        return f"{Path(file).name}:{line}"
