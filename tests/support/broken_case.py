"""One broken recipe, and short ways to write one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.samples import changed, write


@dataclass(frozen=True)
class Case:
    """One broken recipe.

    Attributes:
        build: writes the recipe and its files into a folder and returns the recipe's path.
        expected: what the message must contain.
        overrides: `--set` arguments.
        faults: how many lines the message has.
    """

    id: str
    build: Callable[[Path], Path]
    expected: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    faults: int = 1


def recipe_case(id: str, recipe: dict[str, Any] | str | bytes, *expected: str, faults: int = 1) -> Case:  # noqa: A002
    return Case(id, lambda folder: write(folder, recipe), expected, faults=faults)


def changed_case(key: str, value: Any, *expected: str, id: str = "", faults: int = 1) -> Case:  # noqa: A002
    return recipe_case(id or f"{key}={value!r}"[:60], changed((key, value)), *expected, faults=faults)
