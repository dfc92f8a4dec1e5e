"""A name on the command line: one run, or a sweep."""

from __future__ import annotations

from pathlib import Path

from hpclm.runs.record import Run, find_run
from hpclm.runs.sweep import Sweep, find_sweep


def find(folder: Path, name: str | None) -> Run | Sweep:
    """The run or sweep of that name: by id, by a unique prefix, or by path; the latest run without a name.

    Raises RunNotFoundError, listing the candidates.
    """
    return find_sweep(folder, name) or find_run(folder, name)
