"""What a rank reports to the login node, in small files in the run directory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError, DataError, PeerError
from hpclm.core.failures import FailureKind, policy
from hpclm.core.files import append_line, finite, write_json
from hpclm.core.rank_report import RankReport
from hpclm.core.records import to_dict
from hpclm.core.states import RankState
from hpclm.core.storage import is_refused
from hpclm.worker.rank_identity import RankFacts

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

_PROGRESS_INTERVAL_S = 1.0
_TRACEBACK_LINES = 30
_PEER_WORDS = ("closed by peer", "connection reset", "broken pipe", "connection refused", "timed out", "socket", "nccl")
# CUDA error texts (cudaGetErrorString) of a broken device; the same program may work on another one.
_HARDWARE_WORDS = (
    "uncorrectable ecc",
    "hardware stack error",
    "uncorrectable nvlink",
    "device is lost",
    "fallen off the bus",
    "unspecified launch failure",
    "mps client terminated",
    "no cuda-capable device",
    "all cuda-capable devices are busy",
    # 802 and 803: the fabric manager or the driver of this node is not as the others'
    "system not yet initialized",
    "unsupported display driver / cuda driver combination",
)
# A shared file system that was unavailable for a moment; a full or read-only one will not recover.
_STORAGE_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO)
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")


class StoppedError(Exception):
    """The job was asked to stop; its progress is saved and can be resumed."""


class ProgramError(Exception):
    """A user's program failed. `retry`: whether another attempt may succeed."""

    def __init__(self, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.retry = retry


class RendezvousError(RuntimeError):
    """The rendezvous of the ranks failed; the message says which rank is missing or what could not be reached."""


_KINDS: tuple[tuple[tuple[type[BaseException], ...], FailureKind], ...] = (
    ((StoppedError,), FailureKind.SIGNAL),
    ((DataError, FloatingPointError), FailureKind.DATA),
    ((CheckpointError,), FailureKind.CHECKPOINT),
    ((MemoryError,), FailureKind.MEMORY),
    ((PeerError,), FailureKind.PEER_LOST),
    ((RendezvousError,), FailureKind.RENDEZVOUS_TIMEOUT),
)


class RankRecord:
    """The `ranks/<rank>.json` of one attempt: that the rank began, and how it ended."""

    def __init__(self, path: Path, facts: RankFacts) -> None:
        self.path = path
        self.report = RankReport(facts.rank, facts.node, os.getpid(), time.time())
        self._write()

    def _write(self) -> None:
        """In the run; where that cannot be, on standard error and on the node, so that the last words are not lost."""
        try:
            write_json(self.path, to_dict(self.report))
        except OSError as error:
            words = f"rank {self.report.rank}: {self.path} cannot be written ({error.strerror}): {self.report.message}"
            print(words, file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):
                on_node = Path(tempfile.gettempdir()) / f"hpclm-{os.getuid()}"
                write_json(on_node / _flat(self.path), to_dict(self.report))

    def _ended(self, state: RankState, kind: FailureKind | None, message: str) -> int:
        """Write how the rank ended; returns the exit code of that kind of failure."""
        code = 0 if kind is None else int(policy(kind).exit_code)
        report = self.report
        report.state, report.kind, report.exit_code, report.message = state, kind or "ok", code, message
        report.ended_at = time.time()
        self._write()
        return code

    def stalled(self, timeout_s: float, waiting: bool, place: str, stack: Path) -> int:
        """Record a stall, and whether this rank waited for others; returns the exit code."""
        what = "waited for others" if waiting else "made no progress"
        kind = FailureKind.WAITED if waiting else FailureKind.STALL
        self.report.beats = heartbeat.count()
        return self._ended(RankState.FAILED, kind, f"{what} for {timeout_s:.0f} s {place}; its stack is in {stack}")

    def finish(self, error: BaseException | None, stood_still_s: float = 0.0) -> int:
        """Record how the rank ended; returns the matching exit code.

        Args:
            stood_still_s: how long the process was suspended. If it resumes and the
                other ranks are gone, they had waited for it.
        """
        kind = classify(error) if error is not None else None
        if kind is FailureKind.PEER_LOST and stood_still_s:
            kind = FailureKind.STALL
            what = f"did not run at all for {stood_still_s:.0f} s: the process was stopped, and the others left"
            error = PeerError(what).with_traceback(error.__traceback__ if error else None)
        state = RankState.DONE if kind is None else RankState.FAILED
        state = RankState.STOPPED if kind is FailureKind.SIGNAL else state
        if error is None:
            return self._ended(state, kind, "")
        lines = "".join(traceback.format_exception(error)).splitlines()
        self.report.error_type, self.report.where = type(error).__name__, _where(error)
        self.report.traceback = "\n".join(lines[-_TRACEBACK_LINES:])
        return self._ended(state, kind, str(error).strip() or type(error).__name__)


def classify(error: BaseException) -> FailureKind:
    """What kind of failure an exception is: by its type, and for errors of torch, NCCL and CUDA by its text."""
    for types, kind in _KINDS:
        if isinstance(error, types):
            return kind
    if isinstance(error, ProgramError):
        return FailureKind.PROGRAM if error.retry else FailureKind.ERROR
    if is_refused(error):
        return FailureKind.DISK
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
        return FailureKind.STORAGE
    names = {cls.__name__ for cls in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return FailureKind.MEMORY
    text = str(error).lower()
    if isinstance(error, RuntimeError) and any(word in text for word in _HARDWARE_WORDS):
        return FailureKind.HARDWARE
    if isinstance(error, RuntimeError) and any(word in text for word in _MEMORY_WORDS):
        return FailureKind.MEMORY
    from_torch = isinstance(error, RuntimeError) or "DistError" in names
    if from_torch and ("DistError" in names or "gloo" in text) and any(word in text for word in _PEER_WORDS):
        return FailureKind.PEER_LOST
    return FailureKind.ERROR


def _where(error: BaseException) -> str | None:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _flat(path: Path) -> str:
    """A name for a file of a run outside it: the run, the stage, the attempt and the rank."""
    return "-".join((path.parents[5].name, path.parents[3].name, path.parents[1].name, path.name))


class ProgressValues(TypedDict, total=False):
    """The contents of `progress.json`; None is unknown."""

    phase: str
    step: int | None
    total_steps: int | None
    epoch: int | None
    loss: float | None
    val_loss: float | None
    tokens_per_s: float | None
    seconds_left: float | None


class Progress:
    """`progress.json` and `metrics.jsonl` of a stage, written by one rank and ignored on the others."""

    def __init__(self, progress: Path, metrics: Path, *, active: bool) -> None:
        self.progress_path, self.metrics_path, self.active = progress, metrics, active
        self.state: dict[str, object] = dict.fromkeys(ProgressValues.__annotations__)
        self.state["started_at"] = time.time()
        self.written_at = 0.0
        self.refused = False

    def update(self, *, force: bool = False, **values: Unpack[ProgressValues]) -> None:
        """Set new values; counts as a heartbeat on every rank.

        They are written at most once a second unless `force` or the phase changes.
        """
        heartbeat.beat()
        force = force or values.get("phase", self.state["phase"]) != self.state["phase"]
        self.state.update(values)
        now = time.monotonic()
        if self.active and (force or now - self.written_at >= _PROGRESS_INTERVAL_S):
            self.written_at = now
            self._try(lambda: write_json(self.progress_path, {**self.state, "updated_at": time.time()}))

    def _try(self, write: Callable[[], None]) -> None:
        """Training does not end because its progress cannot be written; the log says so once."""
        try:
            write()
        except OSError as error:
            if not self.refused:
                print(f"progress cannot be written: {error}", file=sys.stderr, flush=True)
            self.refused = True
        else:
            self.refused = False

    def metric(self, kind: str, step: int, values: Mapping[str, float], *, silent: bool = False) -> None:
        """Append one row to the metrics and, unless `silent`, print it on standard output."""
        if not self.active:
            return
        row = {"kind": kind, "step": step, **values, "time": time.time()}
        self._try(lambda: append_line(self.metrics_path, finite(row)))
        if silent:
            return
        shown = " ".join(f"{key} {value:.6g}" for key, value in values.items() if isinstance(value, float))
        print(f"{kind} step {step} {shown}", flush=True)

    def forget_after(self, step: int) -> None:
        """Remove the metrics of steps that a resumed run repeats."""
        if not self.active or not self.metrics_path.exists():
            return
        rows = []
        for line in self.metrics_path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that was being written when the run died
                continue
            if row["step"] <= step:
                rows.append(line)
        partial = self.metrics_path.with_suffix(".partial")
        partial.write_text("".join(f"{row}\n" for row in rows))
        partial.replace(self.metrics_path)
