"""Recipes: `plan` and `submit --dry-run`."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.kinds import bases


def make(rng: Random, folder: Path) -> list[str]:
    raw_bytes.special_files(folder)
    base = bases.sample(rng, folder)
    way = rng.random()
    if way < 0.65:
        data = raw_bytes.encoded(trees.yaml_text(trees.mutated(base, rng, odd_values.yaml_value)))
    elif way < 0.95:
        data = raw_bytes.damaged_text(trees.yaml_text(base), rng)
    else:
        data = raw_bytes.damaged(
            raw_bytes.encoded(trees.yaml_text(trees.mutated(base, rng, odd_values.yaml_value))), rng
        )
    name = "recipe.yaml"
    (folder / name).write_bytes(data)
    if rng.random() < 0.06:
        # what extends it is whole
        (folder / "child.yaml").write_text("extends: recipe.yaml\nname: child\n")
        name = "child.yaml"
    elif rng.random() < 0.04:
        name = rng.choice([*odd_values.PLACES, "fifo", "loop", "zeros", "folder", "closed"])
    return command(rng, name)


def command(rng: Random, name: str, *more: str) -> list[str]:
    """`plan`, or `submit --dry-run` at some site."""
    if rng.random() < 0.5:
        return ["plan", name, *more, *(["--json"] if rng.random() < 0.3 else [])]
    return [*dry_run(rng, name), *more]


def dry_run(rng: Random, name: str) -> list[str]:
    site = rng.choice(([], [], ["--site", "slurm"]))
    return ["submit", name, "--dry-run", "--runs-dir", "runs", *site, *(["--json"] if rng.random() < 0.3 else [])]
