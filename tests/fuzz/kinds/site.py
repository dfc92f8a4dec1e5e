"""Site profiles: `submit RECIPE --dry-run --site FILE`."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.kinds import bases
from tests.support import samples

_MORE: dict[str, Any] = {"qos": "normal", "constraint": "a100", "gpu_type": "a100"}


@functools.cache
def profile() -> dict[str, Any]:
    """The one in launch/sites, and the keys that are comments there."""
    found = yaml.safe_load((bases.REPOSITORY / "launch" / "sites" / "example.yaml").read_text())
    return {**found, **_MORE}


def make(rng: Random, folder: Path) -> list[str]:
    raw_bytes.special_files(folder)
    samples.write(folder, samples.changed())
    name = "site.yaml"
    way = rng.random()
    if way < 0.6:
        data = raw_bytes.encoded(trees.yaml_text(trees.mutated(profile(), rng, odd_values.yaml_value)))
    else:
        data = raw_bytes.damaged_text(trees.yaml_text(profile()), rng)
    if rng.random() < 0.15:
        name = rng.choice(("site\x1b.yaml", "s" * 251 + ".yaml", "\udcff.yaml", "a b.yaml", "site\n.yaml", "-.yaml"))
        name = name[-255:]
    (folder / name).write_bytes(data)
    shown = f"./{name}"
    if rng.random() < 0.2:
        place = rng.choice(odd_values.PLACES)
        shown = place if place.startswith("/") else f"./{place}"
    elif rng.random() < 0.05:
        shown = rng.choice(
            ("nothing", "nothing.yaml", "", "/", ".", "~/x.yaml", "~nobody/x.yaml", "a\x1b", "slurm ", "x" * 5000)
        )
    command = rng.choice(
        (["submit", "recipe.yaml", "--dry-run"], ["submit", "recipe.yaml", "--dry-run"], ["status"], ["nodes"])
    )
    runs = ["--runs-dir", "runs"] if rng.random() < 0.7 else []
    return [*command, "--site", shown, *runs, *(["--json"] if rng.random() < 0.2 else [])]
