"""The status of many runs at once: the newest first to be read, and those that are settled read once.

A run is settled when it has been complete for some time. Its status is then kept in an index in the runs folder; a run
whose record has changed since (it was resumed) is read again, and so is everything when the index is in doubt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import DamagedError, HpclmError
from hpclm.core.layout import RunPaths
from hpclm.core.records import from_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.states import StageState
from hpclm.core.sweep_layout import RunsFolder
from hpclm.runs.record import Run, in_order, read_run
from hpclm.runs.status import RunStatus, StageStatus, status_of

# Fewer runs than this are read faster than the index.
_INDEXED = 50
_SETTLED_S = 600.0
_VERSION = 1
_REQUIRED = ("name", "task", "state", "reason")
_DEFAULTS = vars(StageStatus("", "", StageState.UNKNOWN, ""))


@dataclass(frozen=True)
class Listing:
    """Runs of a folder, oldest first.

    Attributes:
        unreadable: what is wrong with those whose record cannot be read.
        hidden: how many older ones were not read.
    """

    runs: list[RunStatus]
    unreadable: list[str]
    hidden: int


def newest(folder: Path, limit: int) -> Listing:
    """The status of the `limit` newest runs of a folder; 0: of all."""
    roots = in_order(folder)
    hidden = max(0, len(roots) - limit) if limit else 0
    roots = roots[hidden:]
    marks = {root: mark for root in roots if (mark := _mark(root)) is not None}
    index = _read(folder) if len(roots) > _INDEXED else {}
    known = {
        root: status for root in marks if (status := _settled(root, index.get(root.name), marks[root])) is not None
    }
    runs: list[Run] = []
    unreadable = []
    for root in roots:
        if root not in known:
            try:
                runs.append(read_run(root))
            except HpclmError as error:
                unreadable.append(str(error))
    found = {run.paths.root: status for run, status in zip(runs, status_of(runs), strict=True)}
    if len(roots) > _INDEXED and any(_is_settled(status) for status in found.values()):
        _write(folder, {**known, **found}, marks)
    statuses = {**known, **found}
    shown = [statuses[root] for root in roots if root in statuses]
    return Listing(sorted(shown, key=lambda one: (one.created_at, one.run)), unreadable, hidden)


def _mark(root: Path) -> list[int] | None:
    """What changes when a run's record does."""
    try:
        found = RunPaths(root).record.stat()
    except OSError:
        return None
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def _is_settled(status: RunStatus) -> bool:
    # a run that failed may be requeued by an administrator, and its record does not change then
    return status.state is StageState.COMPLETED and not status.warnings and time.time() - _last(status) > _SETTLED_S


def _last(status: RunStatus) -> float:
    """When something last happened to a run."""
    return max([status.created_at, *(stage.ended_at or 0.0 for stage in status.stages)])


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = read_sealed(RunsFolder(folder).status_index) or {}
    except (DamagedError, OSError):
        return {}
    entries = found.get("runs") if found.get("version") == _VERSION else None
    return entries if isinstance(entries, dict) else {}


def _settled(root: Path, entry: Any, mark: Sequence[int]) -> RunStatus | None:
    """The status in an entry of the index, None where it is of another state of the run."""
    if not isinstance(entry, dict) or entry.get("mark") != mark:
        return None
    try:
        return dataclasses.replace(from_dict(RunStatus, entry.get("status")), path=str(root))
    except ValueError:
        return None


def _write(folder: Path, statuses: dict[Path, RunStatus], marks: dict[Path, list[int]]) -> None:
    entries = {
        root.name: {"mark": marks[root], "status": _plain(status)}
        for root, status in statuses.items()
        if root in marks and _is_settled(status)
    }
    with contextlib.suppress(OSError):  # another user's folder, a full disk: then they are read again
        write_sealed(RunsFolder(folder).status_index, {"version": _VERSION, "runs": entries}, indent=None)


def _plain(status: RunStatus) -> dict[str, Any]:
    """Without what is at its default, which is most of it."""
    stages = [
        {key: value for key, value in vars(stage).items() if key in _REQUIRED or value != _DEFAULTS[key]}
        for stage in status.stages
    ]
    return {**{key: value for key, value in vars(status).items() if key != "warnings"}, "stages": stages}
