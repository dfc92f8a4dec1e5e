"""Assignments on the command line: `plan RECIPE --set KEY=VALUE`, and without `--set`."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.kinds import bases, recipe


def make(rng: Random, folder: Path) -> list[str]:
    raw_bytes.special_files(folder)
    base = bases.sample(rng, folder)
    (folder / "recipe.yaml").write_text(trees.yaml_text(base))
    more: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        word = raw_bytes.argument(assignment(rng, base))
        more += ["--set", word] if rng.random() < 0.5 else [word]
    if rng.random() < 0.1:
        more += [
            rng.choice(("--nodes", "--devices-per-node")),
            rng.choice(("0", "-1", "1" * 30, "x", "1.5", "9" * 5000, "")),
        ]
    return recipe.command(rng, "recipe.yaml", *more)


def assignment(rng: Random, base: dict[str, Any]) -> str:
    if rng.random() < 0.4:
        key, value = rng.choice([*trees.leaves(base)])
        return f"{rng.choice(('', '', '', '++'))}{key}={scalar(trees.alike(value, rng))}"
    known = list(trees.keys(base))
    name = rng.choice([*known, *known, *MORE])
    way = rng.random()
    if way < 0.1:
        name = odd_values.text(rng)
    elif way < 0.2:
        name = f"{name}.{rng.choice(('0', '-1', '99999999999999999999', 'x', '', 'a.b', '9' * 5000, '²'))}"
    elif way < 0.25:
        at = rng.randint(0, len(name))
        name = name[:at] + rng.choice(("..", " ", "\x1b", "[0]", "'", "{", "\n", "@", ":", "/")) + name[at:]
    mark = rng.choice(("", "", "", "", "+", "++", "~"))
    if mark == "~" and rng.random() < 0.6:
        return mark + name
    return f"{mark}{name}={written(rng)}"


def scalar(value: Any) -> str:
    return trees.yaml_text(value).strip().removesuffix("...").strip()


def written(rng: Random) -> str:
    """A value as it is written for `--set`."""
    way = rng.random()
    if way < 0.12:
        return rng.choice(QUOTED)
    if way < 0.5:
        return rng.choice(PLAIN)
    found = odd_values.yaml_value(rng)
    if isinstance(found, odd_values.Raw):
        return found.text
    if isinstance(found, str) and rng.random() < 0.7:
        return found
    return scalar(found)


MORE = (
    "stages.ptune.optim.lr",
    "stages.nothing.optim.lr",
    "stages",
    "task_templates.first.total_virtual_tokens",
    "task_templates.first",
    "model.checkpoint",
    "hydra.run.dir",
    "extends",
    "version",
    "container.environment.A",
    "optim.schedule",
    "parallel.context",
)
PLAIN = (
    "0",
    "1",
    "2",
    "4",
    "64",
    "-1",
    "0.5",
    "1e-4",
    "1e300",
    "1e999",
    ".nan",
    "true",
    "false",
    "null",
    "x",
    "[]",
    "[1]",
    "[x, y]",
    "[0.9, 0.95]",
    "cosine",
    "ptune",
    "pretrain",
    "base",
    "./base",
    "train.jsonl",
    "p-tuning",
    "evaluate",
    "cpu",
    "gpu",
    "bf16",
    "9223372036854775808",
    "1000000",
    "\x9b",
    "é",
)
QUOTED = (
    "{taskname:squad}",
    "[{a:1},{b:2}]",
    "[0.9,0.95]",
    "'a,b'",
    '"open',
    "{a:{b:{c:1}}}",
    "[" * 50 + "]" * 50,
    "[a",
    "}",
    "a: b",
    "a\nb: c",
    "|\n  x",
    "&a [*a]",
    "#",
    "a # b",
    "=",
    "a=b=c",
)
