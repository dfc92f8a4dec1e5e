"""`--set a.b=c`, or `a.b=c` alone: values that override the recipe from the command line.

A key of the top level reaches every stage that inherits it; `stages.<name>.<key>` changes one. Entries of a list are
numbered (`task_templates.0.total_virtual_tokens`), templates also by their taskname. Values are YAML: numbers, true,
text, and lists such as `[0.9, 0.95]`; `{taskname:squad}` needs no space after the colon, as on Hydra's command line.

As there, `+a.b=c` adds a key that is not in the file, `++a.b=c` adds or changes one, and `~a.b` removes one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from hpclm.core.errors import RecipeError
from hpclm.recipe.inheritance import without_alternatives
from hpclm.recipe.tree import Node, Place, parse

Way = Literal["", "+", "++", "~"]
_WAYS: tuple[Way, ...] = ("++", "+", "~")


@dataclass(frozen=True)
class Override:
    """One override: the key, the value with the argument as its place, and Hydra's mark in front of the key."""

    key: str
    value: Node
    way: Way = ""

    @property
    def origin(self) -> str:
        return self.value.place.origin


def parse_override(text: str) -> Override:
    """Read `a.b=c`, `+a.b=c`, `++a.b=c` or `~a.b`. Raises RecipeError for bad syntax."""
    key, equals, raw = text.partition("=")
    shown = text if text.isprintable() and 0 < len(text) <= 120 else repr(text[:120])
    origin = f"--set {shown}"
    way: Way = next((mark for mark in _WAYS if key.startswith(mark)), "")
    key = key[len(way) :].strip()
    if way == "~" and not equals:
        raw = equals = "null"
    if not equals or not key:
        raise RecipeError(f"{origin}: is not an assignment; write key=value, as in --set optim.lr=1e-4")
    if not key.isprintable() or any(not part or part != part.strip() for part in key.split(".")):
        raise RecipeError(
            f"{origin}: {key[:60]!r} is not a valid key; write words joined by dots, as in trainer.max_steps"
        )
    if not raw.strip():
        raise RecipeError(f"{origin}: a value is missing; write null for no value, or '\"\"' for empty text")
    try:
        value = parse(_spaced(raw) if raw.lstrip()[0] in "[{" else raw, origin, numbered=False)
    except RecipeError as error:
        raise RecipeError(f"{error}; text with special characters must be put in quotes: --set '{key}=\"…\"'") from None
    if isinstance(value.value, dict):
        raise RecipeError(f"{origin}: a value is one scalar or a list; set the keys of a mapping one by one")
    return Override(key, value, way)


def _spaced(text: str) -> str:
    """The value with a space after the colon of each key between braces, where YAML needs one and Hydra does not."""
    made, quote, brackets, in_key = [], "", "", False
    for place, character in enumerate(text):
        made.append(character)
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and text[place - 1 : place] in ("", "[", "{", ",", ":", " "):
            quote = character
        elif character in "[{":
            brackets, in_key = brackets + character, character == "{"
        elif character in "]}":
            brackets, in_key = brackets[:-1], False
        elif character == "," and brackets:
            in_key = brackets[-1] == "{"
        elif character == ":" and in_key:
            made.append(" ")
            in_key = False
    return "".join(made)


def flag(name: str, key: str, value: int) -> Override:
    """A command-line flag that sets a key, as `--nodes 2` for resources.nodes."""
    return Override(key, Node(value, Place(f"--{name} {value}", argument=True)))


def apply(root: Node, overrides: list[Override]) -> Node:
    """The tree with every override in it. Raises RecipeError with all errors at once."""
    faults: list[str] = []
    seen: dict[str, str] = {}
    for override in overrides:
        if override.key in seen:
            faults.append(f"{override.origin}: {override.key} is already set by {seen[override.key]}; keep one")
            continue
        seen[override.key] = override.origin
        try:
            root = _apply(root, override)
        except RecipeError as error:
            faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    return root


def _apply(root: Node, override: Override) -> Node:
    parts = override.key.split(".")
    if parts[0] != "stages":
        return _put(root, parts, override, "", None)
    stages = root.get("stages")
    if stages is None or not isinstance(stages.value, list):
        raise RecipeError(f"{override.origin}: this recipe is a single stage; leave 'stages.<name>.' out")
    rest = override.key.removeprefix("stages.") if len(parts) > 1 else ""
    names = [_name(node) for node in stages.value]
    # A stage's name may itself contain dots: the longest matching name is used.
    fitting = [i for i, name in enumerate(names) if name and rest.startswith(name + ".")]
    if not fitting:
        near = difflib.get_close_matches(rest.split(".")[0], [n for n in names if n], n=1, cutoff=0.5)
        hint = f"did you mean stages.{near[0]}? " if near else ""
        known = ", ".join(name for name in names if name)
        raise RecipeError(f"{override.origin}: write stages.<name>.<key>=value; {hint}the stages are {known}")
    index = max(fitting, key=lambda i: len(names[i]))
    if names.count(names[index]) > 1:
        raise RecipeError(f"{override.origin}: two stages are called {names[index]}; give each its own name first")
    keys = rest[len(names[index]) + 1 :].split(".")
    items = list(stages.value)
    items[index] = _put(items[index], keys, override, "", root)
    assert isinstance(root.value, dict)
    return Node({**root.value, "stages": Node(list(items), stages.place)}, root.place)


def _name(node: Node) -> str:
    name = node.get("name")
    return name.value if name is not None and isinstance(name.value, str) else ""


def _put(node: Node, keys: list[str], override: Override, section: str, inherited: Node | None) -> Node:
    """`node` with the override's value at `keys`, creating mappings where there are none.

    A list that a stage inherits (`inherited`: the same place at the top level) is copied
    first, so that an entry can be changed.
    """
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        index = _index(node, key, override)
        items = list(node.value)
        if override.way == "~" and not rest:
            del items[index]
        else:
            items[index] = _put(items[index], rest, override, "", None) if rest else override.value
        return Node(items, node.place)
    if node.value is not None and not isinstance(node.value, dict):
        message = f"nothing can be set below a plain value, here {node.value!r}; leave the last part of the key out"
        raise RecipeError(f"{override.origin}: {message}")
    entries = dict(node.value or {})
    if rest:
        above = inherited.get(key) if inherited is not None else None
        taken = above if above is not None and isinstance(above.value, list) else Node({}, override.value.place)
        inner = entries.get(key, taken)
        if rest[0].isdecimal() and not isinstance(inner.value, list):
            raise RecipeError(f"{override.origin}: there is no list {key} to set an entry of; set it whole, as [a, b]")
        entries[key] = _put(inner, rest, override, key, above)
    elif override.way == "~":
        if key not in entries:
            raise RecipeError(f"{override.origin}: there is no {override.key} to remove")
        del entries[key]
    elif override.way == "+" and key in entries:
        raise RecipeError(f"{override.origin}: {override.key} is already there; leave the + out to change it")
    else:
        entries = {**without_alternatives(entries, {key}, section), key: override.value}
    return Node(entries, node.place)


def _index(node: Node, key: str, override: Override) -> int:
    assert isinstance(node.value, list)
    if key.isdecimal() and len(key) <= 6 and int(key) < len(node.value):
        return int(key)
    named = [item.get("taskname") for item in node.value]
    names = [str(name.value) if name is not None else "" for name in named]
    if names.count(key) == 1:
        return names.index(key)
    choices = [f"0 to {len(node.value) - 1}"] if node.value else []
    choices += [name for name in names if name]
    raise RecipeError(
        f"{override.origin}: {key!r} is not an entry of the list; choose {' or '.join(choices) or 'another key'}"
    )
