"""What is mutated: one module a kind, each with `make(rng, folder)`, which writes its files into the folder and returns
the arguments of the command, to be run there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.kinds import archive, nemo, recipe, rows, runs, score, sets, site, sweep

Make = Callable[[Random, Path], list[str]]
KINDS: dict[str, Make] = {
    "recipe": recipe.make,
    "set": sets.make,
    "sweep": sweep.make,
    "site": site.make,
    "rows": rows.make,
    "nemo": nemo.make,
    "archive": archive.make,
    "runs": runs.make,
    "score": score.make,
}
