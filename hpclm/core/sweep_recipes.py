"""The members' recipes with every default, in one file of the sweep: alike as they are, all of them compressed take
less room than a few would as files."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from hpclm.core.files import open_file
from hpclm.core.sweep_layout import SweepPaths

_LONGEST = 64 << 20


def write_recipes(paths: SweepPaths, recipes: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Names of runs, and their resolved recipes."""
    with gzip.open(paths.resolved, "wt", encoding="utf-8") as file:
        for run, resolved in recipes:
            file.write(json.dumps({"run": run, "resolved": resolved}) + "\n")


def recipe_of(paths: SweepPaths, run: str) -> dict[str, Any] | None:
    """A member's resolved recipe; None where the sweep does not have it."""
    try:
        with open_file(paths.resolved) as stored, gzip.GzipFile(fileobj=stored) as plain:
            lines = io.BufferedReader(plain)
            while line := lines.readline(_LONGEST):
                found = json.loads(line)
                if found["run"] == run:
                    return dict(found["resolved"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return None
