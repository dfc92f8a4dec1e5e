"""Extension points of hpclm: one registry per kind, filled by hpclm itself and by other packages' entry points.

A package that adds an engine declares it in its pyproject.toml; recipes can then use it
wherever the package is installed:

    [project.entry-points."hpclm.engines"]
    mine = "mypackage.engine:ENGINE"

An entry is loaded only when it is used, so a name costs nothing. In a run, where no package is
installed, the payload carries the code of the packages in use and `plugins.json` with their entries (`core.payload`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar, cast

from hpclm.core.errors import HpclmError
from hpclm.core.nearest import nearest_name

T_co = TypeVar("T_co", covariant=True)

PLUGINS_FILE = "plugins.json"
_PREFIX = "[hpclm."


class UnknownNameError(HpclmError):
    """There is no entry of that name; the message lists the nearest and all known names."""


class Registry(Generic[T_co]):
    """Named things of one kind, loaded when they are used.

    Args:
        group: the entry-point group, `hpclm.engines`.
        kind: what one entry is, for messages.
        builtin: hpclm's own entries by name, each `module:attribute`.
        of: the class that every entry is an instance of, or its protocol, as `module:class`.
        aliases: earlier names that still work.
    """

    def __init__(
        self, group: str, kind: str, builtin: Mapping[str, str], of: str, aliases: Mapping[str, str] | None = None
    ) -> None:
        self.group, self.kind, self._of = group, kind, of
        self._builtin, self._aliases = dict(builtin), dict(aliases or {})
        self._loaded: dict[str, object] = {}

    def locations(self) -> dict[str, str]:
        """`module:attribute` by name; hpclm's own first, which no other package can replace."""
        return {**self._builtin, **{k: v for k, v in _plugins(self.group).items() if k not in self._builtin}}

    def names(self) -> tuple[str, ...]:
        return tuple(self.locations())

    def builtin_names(self) -> tuple[str, ...]:
        return tuple(self._builtin)

    def canonical(self, name: str) -> str:
        """The name that an earlier one stands for; any other unchanged."""
        return self._aliases.get(name, name)

    def __contains__(self, name: object) -> bool:
        # hpclm's own answer without looking for packages
        return isinstance(name, str) and (self.canonical(name) in self._builtin or name in self.locations())

    def location(self, name: str) -> str:
        """Where the entry is. Raises UnknownNameError."""
        name = self.canonical(name)
        found = self._builtin.get(name) or self.locations().get(name)
        if found is None:
            raise UnknownNameError(self.unknown(name))
        return found

    def get(self, name: str) -> T_co:
        """The entry. Raises UnknownNameError, or HpclmError for one that cannot be loaded or is something else."""
        location = self.location(name)
        if location not in self._loaded:
            found = load_object(location)
            expected = load_object(self._of)
            if not isinstance(found, cast(type, expected)):
                wrong = f"{location}: the {self.kind} {name[:60]!r} is a {type(found).__name__}"
                raise HpclmError(f"{wrong}; the package that declares it must give what {self._of} describes")
            self._loaded[location] = found
        return cast(T_co, self._loaded[location])

    def items(self) -> Iterator[tuple[str, T_co]]:
        """Every entry, loaded."""
        for name in self.names():
            yield name, self.get(name)

    def is_builtin(self, name: str) -> bool:
        return name in self._builtin

    def unknown(self, name: str) -> str:
        """The message for a name that does not exist."""
        near = nearest_name(name, self.names())
        hint = f"did you mean {near}? " if near else ""
        return f"there is no {self.kind} {name[:60]!r}; {hint}choose {', '.join(self.names())}"


def load_object(location: str) -> object:
    """The object at `module:attribute`. Raises HpclmError where it cannot be imported."""
    module, _, attribute = location.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise HpclmError(f"{location}: cannot be loaded ({error}); is its package installed completely?") from error


@cache
def _plugins(group: str) -> dict[str, str]:
    """Other packages' entries: those of the payload in a run, else those of the installed packages."""
    file = Path(__file__).parents[2] / PLUGINS_FILE
    if file.is_file():
        written = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): str(location) for name, location in written.get(group, {}).items()}
    return _installed().get(group, {})


@cache
def _installed() -> dict[str, dict[str, str]]:
    """By group, the entries of installed packages. Only files that name hpclm are parsed: there may be hundreds."""
    found: dict[str, dict[str, str]] = {}
    for package in importlib.metadata.distributions():
        if _PREFIX in (package.read_text("entry_points.txt") or ""):
            for entry in package.entry_points:
                found.setdefault(entry.group, {}).setdefault(entry.name, entry.value)
    return found
