"""`submit RECIPE --dry-run --sweep KEY=V1,V2`."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.kinds import bases, recipe, sets
from tests.support import samples

_SHORT = ("seed", "lr", "trainer.seed", "optim.lr", "batch.global", "stages.ptune.optim.lr")


def make(rng: Random, folder: Path) -> list[str]:
    base = samples.changed() if rng.random() < 0.7 else bases.sample(rng, folder)
    samples.write_files(folder)
    (folder / "recipe.yaml").write_text(trees.yaml_text(base))
    if rng.random() < 0.45:
        fitting = [_fitting(rng, base) for _ in range(rng.choice((1, 1, 2)))]
        return [*recipe.dry_run(rng, "recipe.yaml"), *fitting]
    known = [*_SHORT * 6, *trees.keys(base)]
    more: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        more += ["--sweep", raw_bytes.argument(_axis(rng, known))]
    if rng.random() < 0.2:
        more += ["--max-running", rng.choice(("1", "0", "9" * 30, "x"))]
    if rng.random() < 0.2:
        more += ["--metric", raw_bytes.argument(rng.choice(("val_loss", "exact_match", "x", odd_values.text(rng))))]
    if rng.random() < 0.15:
        more += ["--name", raw_bytes.argument(odd_values.text(rng))]
    return [*recipe.dry_run(rng, "recipe.yaml"), *more]


def _fitting(rng: Random, base: dict[str, Any]) -> str:
    """An axis whose values have the key's type."""
    key, value = rng.choice([("optim.lr", 0.1), ("trainer.seed", 1), ("seed", 1), *trees.leaves(base)])
    values = dict.fromkeys(sets.scalar(trees.alike(value, rng)) for _ in range(rng.choice((2, 2, 3))))
    return raw_bytes.argument(f"--sweep={key}={','.join(values)}")


def _axis(rng: Random, known: list[str]) -> str:
    key = rng.choice(known) if rng.random() < 0.85 else odd_values.text(rng)
    way = rng.random()
    if way < 0.2:
        values = ["1", "2", "3"]
    elif way < 0.25:
        values = [str(number) for number in range(rng.choice((20, 101, 20_000)))]
    elif way < 0.5:
        values = [f"{rng.random():.3f}" for _ in range(3)]
    else:
        values = [sets.written(rng) for _ in range(rng.choice((0, 1, 2, 3)))]
    joint = rng.choice((",", ",", ",", ",", ",", ", ", ",,", ";"))
    return f"{key}{rng.choice((*['='] * 12, '', '==', ' = '))}{joint.join(values)}"
