"""The interface of an importer: it recognises a tool's file by its keys and turns its tree into a recipe's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.registries import IMPORTERS
from hpclm.core.words import Word
from hpclm.recipe.tree import Node


class KeyFate(Word):
    """How a key of the other tool was handled."""

    TAKEN = "taken"
    DIFFERS = "may differ"
    NO_EFFECT = "no effect"
    NOT_SUPPORTED = "not supported"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class KeyNote:
    """How one key was handled. `note`: the recipe's key, or why."""

    key: str
    origin: str
    fate: KeyFate
    note: str


def _same(root: Node) -> Node:
    return root


@dataclass(frozen=True)
class Imported:
    """A recipe's tree, every value at the line where the other file has it, and a note for each key.

    Attributes:
        completed: fills in what depends on other keys of the recipe, once the command line's are in it. Raises
            RecipeError for what neither gives.
    """

    root: Node
    notes: list[KeyNote]
    completed: Callable[[Node], Node] = _same


def _unchanged(root: Node, key: str) -> str:
    return key


@dataclass(frozen=True)
class Importer:
    """Reads one tool's files.

    To add one: an object of this class, and an entry `name = "module:OBJECT"` in the group `hpclm.importers`.

    Attributes:
        tool: the name of its files in messages.
        recognises: whether a tree is one of its files.
        resolve: fills in what the tool itself would before it reads the values, such as `${…}`. Given the tree and the
            path of the file.
        own_key: a key of the tool's command line as the file has it.
        suffixes, parse: of files that are no YAML, and how their text (and the file's name) becomes a tree.
        read: the recipe. Given the tree and the folder of the file. Raises RecipeError with every error at its line.
    """

    tool: str
    recognises: Callable[[Node], bool]
    resolve: Callable[[Node, Path], Node]
    read: Callable[[Node, Path], Imported]
    own_key: Callable[[Node, str], str] = _unchanged
    suffixes: tuple[str, ...] = ()
    parse: Callable[[str, str], Node] | None = None


def parser_for(path: Path) -> Callable[[str, str], Node] | None:
    """How a file that is no YAML becomes a tree, by the end of its name."""
    return next(
        (one.parse for _, one in IMPORTERS.items() if one.parse is not None and path.suffix in one.suffixes), None
    )


def importer_for(root: Node) -> Importer | None:
    """The importer that recognises a tree; None for a recipe of hpclm's own."""
    if root.get("version") is not None:
        return None
    found = (one for _, one in IMPORTERS.items() if one.recognises(root))
    return next(found, None)
