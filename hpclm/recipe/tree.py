"""YAML as a tree in which every value has its line number.

YAML 1.2's core schema decides what a plain scalar means, so `1e-4` is a number and `no` is text (in PyYAML's own YAML
1.1 it is the other way round). Tags and several documents are refused. Anchors, aliases and the merge key `<<` work as
in YAML 1.1, within a bound: a recipe cannot expand to more than `MAX_NODES` values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from hpclm.core.errors import RecipeError
from hpclm.core.files import open_file

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 20_000

Scalar: TypeAlias = str | int | float | bool | None

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
# 18 digits fit every size in a recipe, and Python reads them without its limit on long integers.
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?")
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")
# The C parser where PyYAML was built with it: about eight times faster.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Place:
    """Where a value was written: `recipes/x.yaml:14` and `parallel.tensor`, or a command-line argument, which itself
    names the key."""

    origin: str
    key: str = ""
    argument: bool = False

    def __str__(self) -> str:
        return self.origin if self.argument or not self.key else f"{self.origin} {self.key}"

    def child(self, key: str) -> Place:
        return replace(self, key=f"{self.key}.{key}" if self.key else key)


@dataclass(frozen=True)
class Node:
    """A value and its place. Mappings keep the order of the file."""

    value: Scalar | list[Node] | dict[str, Node]
    place: Place

    def plain(self) -> Any:
        """The value without places: dicts, tuples and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return tuple(node.plain() for node in self.value)
        return self.value

    def get(self, *keys: str | int) -> Node | None:
        """The node under `keys`, or None."""
        node: Node | None = self
        for key in keys:
            assert node is not None
            if isinstance(node.value, dict) and isinstance(key, str):
                node = node.value.get(key)
            elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
            else:
                return None
            if node is None:
                return None
        return node

    def where(self, *keys: str | int) -> Place:
        """The place of `keys`; if they are not written, the nearest enclosing place with the full key."""
        place = self.place
        node: Node | None = self
        for key in keys:
            node = node.get(key) if node is not None else None
            if node is not None:
                place = node.place
            else:
                place = replace(place, key=f"{place.key}[{key}]") if isinstance(key, int) else place.child(key)
        return place

    def leaves(self) -> Iterator[Node]:
        """Every scalar below, in the order of the file."""
        if isinstance(self.value, dict):
            for node in self.value.values():
                yield from node.leaves()
        elif isinstance(self.value, list):
            for node in self.value:
                yield from node.leaves()
        else:
            yield self


def read_tree(path: Path, kind: str = "recipe") -> tuple[str, Node]:
    """A file's text and tree. `kind`: what it is, for messages.

    Raises RecipeError with the line unless the file is one plain YAML mapping.
    """
    text = file_text(path, kind)
    root = parse(text, str(path))
    if not isinstance(root.value, dict):
        keys = "name, task and model; see docs/recipe.md" if kind == "recipe" else "scheduler and partition"
        raise RecipeError(f"{path}:1: a {kind} is a mapping of keys such as {keys}")
    return text, root


def file_text(path: Path, kind: str) -> str:
    """A small file's text. Raises RecipeError."""
    try:
        with open_file(path) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give the path of a {kind} file") from None
    if len(raw) > MAX_FILE_BYTES:
        raise RecipeError(f"{path}:1: larger than {MAX_FILE_BYTES >> 20} MiB; is this a {kind}?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text; save the {kind} as UTF-8") from None


def parse(text: str, file: str, *, numbered: bool = True) -> Node:
    """One YAML document as a tree. `numbered` adds line numbers to the places. Raises RecipeError."""
    return _Builder(text, file, numbered).document()


class _Builder:
    """Turns the parser's events into nodes, refusing what a recipe must not contain."""

    def __init__(self, text: str, file: str, numbered: bool) -> None:
        self.text, self.file, self.numbered = text, file, numbered
        for number, line in enumerate(text.split("\n"), start=1):
            # Checked here, since the parser reports neither line nor character.
            bad = _CONTROL.search(line)
            if bad is not None:
                raise self.error(number, f"contains the control character U+{ord(bad[0]):04X}; remove it")
        self.events = yaml.parse(text, Loader=_LOADER)
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.nodes = 0

    def origin(self, line: int) -> str:
        return f"{self.file}:{line}" if self.numbered else self.file

    def error(self, line: int, message: str) -> RecipeError:
        return RecipeError(f"{self.origin(line)}: {message}")

    def next(self) -> Any:
        try:
            event: Any = next(self.events)
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from None
        except yaml.YAMLError:
            raise self.error(1, "is not YAML text; remove its control characters") from None
        if getattr(event, "tag", None):
            line = event.start_mark.line + 1
            raise self.error(line, f"the tag {event.tag!r} is not supported; write the plain value (quote text with !)")
        return event

    def _syntax(self, error: yaml.MarkedYAMLError) -> RecipeError:
        mark: Any = error.problem_mark or error.context_mark
        lines = self.text.split("\n")
        # At the end of the file the mark is after the last line.
        number = min(mark.line + 1 if mark is not None else 1, len(lines))
        line = lines[number - 1]
        at = line[mark.column : mark.column + 1] if mark is not None else ""
        if at == "\t" or "\t" in line[: len(line) - len(line.lstrip())]:
            return self.error(number, "a tab indents this line; YAML needs spaces")
        hint = "check quotes, brackets and indentation here and on the line above"
        problem = str(error.problem or "cannot be read")
        if "mapping values are not allowed" in problem:
            hint = "text that contains ': ' must be put in quotes; a key needs its own line"
        elif "cannot start any token" in problem:
            hint = "text that starts with @, ` or % must be put in quotes"
        return self.error(number, f"not valid YAML ({problem}); {hint}")

    def document(self) -> Node:
        self.next()
        event = self.next()
        if isinstance(event, yaml.StreamEndEvent):
            return Node(None, Place(self.origin(1)))
        root = self.node(self.next(), 0, None)
        self.next()
        event = self.next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.error(event.start_mark.line + 1, "a second document (---) starts; a recipe has only one")
        return root

    def node(self, event: Any, depth: int, key_line: int | None) -> Node:
        line = key_line or event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise self.error(line, f"nested deeper than {MAX_DEPTH} levels; use fewer")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, line)
        self.count(1, line)
        before = self.nodes
        node = self.content(event, depth, line)
        if event.anchor is not None:
            # Known only from here on, so an anchor cannot contain itself.
            self.anchors[event.anchor] = (node, self.nodes - before + 1)
        return node

    def content(self, event: Any, depth: int, line: int) -> Node:
        place = Place(self.origin(line), argument=not self.numbered)
        if isinstance(event, yaml.ScalarEvent):
            return Node(resolve_scalar(event.value) if event.implicit[0] else event.value, place)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(event := self.next(), yaml.SequenceEndEvent):
                items.append(self.node(event, depth + 1, None))
            return Node(list(items), place)
        return Node(self.mapping(depth), place)

    def alias(self, event: Any, line: int) -> Node:
        """The anchor's value, with the places it was written at."""
        if event.anchor not in self.anchors:
            raise self.error(
                line, f"*{event.anchor} has no anchor &{event.anchor} before it; text with * must be put in quotes"
            )
        node, size = self.anchors[event.anchor]
        self.count(size, line)
        return node

    def count(self, nodes: int, line: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise self.error(line, f"expands to more than {MAX_NODES} values; use fewer aliases")

    def mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while not isinstance(event := self.next(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise self.error(line, "a key must be a word; check the brackets, and quote text that contains { or [")
            key = event.value
            value = self.node(self.next(), depth + 1, line)
            if key == "<<" and event.implicit[0]:
                merged = {**self.merged(value, line), **merged}
                continue
            if not key or not key.isprintable() or len(key) > 128:
                raise self.error(line, f"{key[:40]!r} cannot be a key; a key is one word")
            if key in entries:
                first = entries[key].place.origin
                raise self.error(line, f"{key}: written twice (first at {first}); keep one")
            entries[key] = value
        return {**merged, **entries}

    def merged(self, value: Node, line: int) -> dict[str, Node]:
        """What `<<` merges: a mapping, or several, the first of which wins."""
        entries: dict[str, Node] = {}
        for node in reversed(value.value) if isinstance(value.value, list) else [value]:
            if not isinstance(node.value, dict):
                raise self.error(line, "<< takes a mapping; write <<: *name of one")
            entries.update(node.value)
        return entries


def resolve_scalar(text: str) -> Scalar:
    """What a plain (unquoted) scalar means in YAML 1.2's core schema, decimal numbers only."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def with_keys(node: Node, key: str = "") -> Node:
    """The same tree with every place naming its full key; entries of `stages` go by their name."""
    place = replace(node.place, key=key)
    if isinstance(node.value, dict):
        return Node({k: with_keys(n, f"{key}.{_word(k)}" if key else _word(k)) for k, n in node.value.items()}, place)
    if isinstance(node.value, list):
        return Node([with_keys(n, _item_key(key, i, n)) for i, n in enumerate(node.value)], place)
    return Node(node.value, place)


def _word(key: str) -> str:
    return key if _WORD.fullmatch(key) else repr(key)


def _item_key(key: str, index: int, node: Node) -> str:
    name = node.get("name") if key == "stages" else None
    if name is not None and isinstance(name.value, str) and _WORD.fullmatch(name.value):
        return f"stages.{name.value}"
    return f"{key}[{index}]"
