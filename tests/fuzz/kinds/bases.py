"""Good recipes with their files, from which cases begin."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.support import samples

REPOSITORY = Path(__file__).parents[3]
RECIPES = REPOSITORY / "recipes"


@functools.cache
def shipped() -> dict[str, Any]:
    """Every recipe of the repository by file name, parsed."""
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))}


@functools.cache
def parts() -> dict[str, Any]:
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted((RECIPES / "parts").glob("*.yaml"))}


@functools.cache
def text_of(name: str) -> str:
    return (RECIPES / name).read_text()


def program() -> dict[str, Any]:
    """A recipe of a program of one's own."""
    run = {"argv": ["python3", "train.py", "{stage_dir}"], "outputs": ["model/*.pt"], "environment": {"A": "1"}}
    again = {"argv": ["sh", "-c", "echo {rank} of {world_size}"], "launcher": "rank", "progress": r"step (?P<step>\d+)"}
    return {
        "version": 1,
        "name": "program",
        "resources": {"nodes": 1, "devices_per_node": 2, "device": "cpu", "time_limit_min": 10},
        "recovery": {"max_restarts": 3, "stall_timeout_s": 600},
        "stages": [
            {"name": "first", "task": "program", "engine": "command", "program": run},
            {"name": "second", "task": "program", "engine": "command", "program": again, "after": ["first"]},
        ],
    }


def sample(rng: Random, folder: Path) -> dict[str, Any]:
    """One whole recipe, with what it names in the folder."""
    samples.write_files(folder)
    way = rng.random()
    if way < 0.5:
        return samples.changed()
    if way < 0.75:
        write_base(folder)
        return samples.single(rng.choice(("p-tuning", "prompt-tuning")))
    if way < 0.85:
        return program()
    shutil.copytree(RECIPES / "parts", folder / "parts")
    demo = folder.parent / "demo-data"
    demo.mkdir(exist_ok=True)
    samples.write_files(demo)
    made: dict[str, Any] = shipped()[rng.choice(sorted(shipped()))]
    return made


@functools.cache
def tokenizer() -> str:
    """A tokenizer.json of the 256 bytes and an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    made = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, []))
    vars_of: Any = made
    vars_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vars_of.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    text: str = made.to_str()
    return text


def write_base(folder: Path) -> Path:
    """The checkpoint `base` of a single stage, with a tokenizer that works."""
    base = samples.write_checkpoint(folder, vocab_size=257, padded_vocab_size=512)
    (base / "tokenizer.json").write_text(tokenizer())
    return base
