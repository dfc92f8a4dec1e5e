"""NeMo's YAML: `recipe import FILE`."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.kinds import bases
from tests.support import nemo_releases

_SET = (
    "trainer.max_steps=10",
    "model.data.train_ds=[a]",
    "+a=b",
    "~trainer",
    "model=5",
    "trainer.devices=x",
    "a.b.c=1",
)


@functools.cache
def trees_of_nemo() -> tuple[dict[str, Any], ...]:
    """The test's file, and one of each table of releases."""
    squad = yaml.safe_load((bases.REPOSITORY / "tests" / "recipe" / "nemo_squad.yaml").read_text())
    found: list[dict[str, Any]] = [squad]
    for name in ("TRAINING", "INFERENCE", "LAUNCHER_TRAINING", "LAUNCHER_EVALUATION"):
        table = getattr(nemo_releases, name, None)
        if table:
            found.append(_nested(nemo_releases.flat(table, list(table)[-1])))
    return tuple(_filled(tree) for tree in found)


def _filled(tree: Any) -> Any:
    """With a value where the files have none."""
    if isinstance(tree, dict):
        return {key: _filled(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_filled(value) for value in tree]
    return (
        "given.nemo"
        if tree == "???"
        else str(tree).replace("${base_results_dir}", "/results")
        if isinstance(tree, str)
        else tree
    )


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return tree


def make(rng: Random, folder: Path) -> list[str]:
    raw_bytes.special_files(folder)
    base = rng.choice(trees_of_nemo())
    if rng.random() < 0.75:
        data = raw_bytes.encoded(trees.yaml_text(trees.mutated(base, rng, _value)))
    else:
        data = raw_bytes.damaged_text(trees.yaml_text(base), rng)
    (folder / "nemo.yaml").write_bytes(data)
    if rng.random() < 0.15:
        parent = rng.choice((nemo_releases.LAUNCHER_CONFIG, "a: ${b}\nb: ${a}\n", "[", "defaults: [x]\n"))
        (folder / "config.yaml").write_text(parent)
    name = rng.choice(odd_values.PLACES) if rng.random() < 0.05 else "nemo.yaml"
    more: list[str] = []
    if rng.random() < 0.25:
        word = raw_bytes.argument(rng.choice((*_SET, f"{rng.choice(list(trees.keys(base)))}={_interpolation(rng)}")))
        more = ["--set", word] if rng.random() < 0.5 else [word]
    return ["recipe", "import", name, *more, *(["--json"] if rng.random() < 0.3 else [])]


def _value(rng: Random) -> Any:
    return _interpolation(rng) if rng.random() < 0.25 else odd_values.yaml_value(rng)


def _interpolation(rng: Random) -> str:
    return rng.choice(
        (
            "${name}",
            "${model}",
            "${.}",
            "${..}",
            "${" + "." * 300 + "a}",
            "${" * 500 + "a" + "}" * 500,
            "${name}" * 1000,
            "${a",
            "${}",
            "${model.optim.lr}",
            "${model.nemo_path}",
            "${multiply:${name}, 2}",
            "${divide_ceil:1, 0}",
            "${divide_ceil:${model.seed}, ${model.seed}}",
            "${multiply:1e308, 1e308}",
            "${multiply:" + "9" * 4000 + ", " + "9" * 4000 + "}",
            "${oc.env:HOME}",
            "${hydra:runtime.choices.training}",
            "???",
            "${model.task_templates[0].taskname}",
            "${model.task_templates.0}",
            "\\${name}",
        )
    )
