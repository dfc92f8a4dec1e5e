"""`hpclm recipe import`: the recipe for another tool's file, as text, with a note on how
each of its keys was handled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hpclm.core.errors import RecipeError
from hpclm.core.registries import IMPORTERS
from hpclm.recipe.importers import KeyFate, KeyNote
from hpclm.recipe.loading import translated

_PATHS = (
    *(("model", "checkpoint"), ("prompts",), ("data", "train"), ("data", "validation"), ("data", "test")),
    *(("indexed", "paths"), ("indexed", "validation"), ("indexed", "cache")),
    *(("instructions", "train"), ("instructions", "validation"), ("instructions", "test")),
    *(("instructions", "chat_template"), ("instructions", "cache"), ("sharding", "deepspeed"), ("sharding", "nvme")),
    *(("tokenizer", "vocab_file"), ("tokenizer", "merges_file"), ("tokenizer", "tokenizer_file")),
)
_ORDER = (KeyFate.UNKNOWN, KeyFate.DIFFERS, KeyFate.NOT_SUPPORTED, KeyFate.NO_EFFECT, KeyFate.TAKEN)
_WORDS = {
    KeyFate.UNKNOWN: "is not known",
    KeyFate.DIFFERS: "may differ",
    KeyFate.NOT_SUPPORTED: "is not supported",
    KeyFate.NO_EFFECT: "had no effect",
}


def imported(path: Path, overrides: Sequence[str], folder: Path) -> tuple[str, list[KeyNote]]:
    """The recipe as YAML for a file in `folder`, and the notes. Raises RecipeError for a file of an unknown tool."""
    _, root, notes = translated(path, overrides)
    if not notes:
        known = ", ".join(one.tool for _, one in IMPORTERS.items())
        raise RecipeError(f"{path}:1: not a file that can be imported (known tools: {known}); is it already a recipe?")
    recipe = _lists(root.plain())
    if folder.resolve() != path.parent.resolve():
        for keys in _PATHS:
            _absolute(recipe, keys, path.parent)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)
    lines = [f"# Made by `hpclm recipe import` from {path.name}.", *(f"#   {line}" for line in lines_of(notes))]
    return "\n".join(lines) + "\n" + text, notes


def lines_of(notes: Sequence[KeyNote]) -> list[str]:
    """How each key was handled, one line each: first unsupported keys, then keys without effect."""
    shown = []
    for note in sorted(notes, key=lambda note: _ORDER.index(note.fate)):
        if note.fate is KeyFate.TAKEN:
            shown.append(f"{note.key} → {note.note}")
        else:
            shown.append(f"{note.key} {_WORDS[note.fate]}: {note.note}")
    return [_printable(line) for line in shown]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _absolute(recipe: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    """Paths made absolute."""
    *sections, last = keys
    for section in sections:
        inner = recipe.get(section)
        if not isinstance(inner, dict):
            return
        recipe = inner
    value = recipe.get(last)
    if isinstance(value, str):
        recipe[last] = os.path.abspath(folder / value)  # noqa: PTH100 - symbolic links are kept
    elif isinstance(value, list):
        recipe[last] = [os.path.abspath(folder / one) if isinstance(one, str) else one for one in value]  # noqa: PTH100
