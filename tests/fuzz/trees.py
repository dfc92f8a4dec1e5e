"""Mutation of a document's tree, and its text afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import yaml

from tests.fuzz import odd_values
from tests.fuzz.odd_values import Raw

Values = Callable[[Random], Any]
Place = tuple[Any, Any]


def places(tree: Any) -> Iterator[Place]:
    """(container, key or index) of every value below the root."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in list(entries):
        yield tree, key
        yield from places(item)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that is neither a list nor a mapping; stages by their name."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in entries:
        name = item.get("name", key) if prefix == "stages." and isinstance(item, dict) else key
        if isinstance(item, (dict, list)):
            yield from leaves(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def keys(tree: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in entries:
        yield f"{prefix}{key}"
        yield from keys(item, f"{prefix}{key}.")


def mutated(tree: Any, rng: Random, values: Values, most: int = 3) -> Any:
    """A copy with a few changes; in some, every value keeps its type, so that more of the program sees it."""
    root = [copy.deepcopy(tree)]
    if rng.random() < 0.35:
        for _ in range(rng.randint(1, 3)):
            plain = [
                (container, key) for container, key in places(root) if not isinstance(container[key], (dict, list))
            ]
            if plain:
                container, key = rng.choice(plain)
                container[key] = alike(container[key], rng)
        return root[0]
    for _ in range(1 + min(rng.randrange(most), rng.randrange(most))):
        _change(root, rng, values)
    return root[0]


def _change(root: list[Any], rng: Random, values: Values) -> None:
    found = list(places(root))
    container, key = rng.choice(found[1:] if len(found) > 1 and rng.random() < 0.97 else found[:1])
    at = container[key]
    way = rng.random()
    if way < 0.5:
        container[key] = values(rng)
    elif way < 0.6:
        del container[key]
        if container is root:
            root.append(None)
    elif way < 0.68:
        _insert(container, rng, rng.choice((odd_values.key(rng), _misspelt(str(key), rng))), values(rng))
    elif way < 0.76:
        other, where = rng.choice(found)
        container[key] = copy.deepcopy(other[where])
    elif way < 0.82:
        del container[key]
        target = rng.choice(found)[0]
        _insert(target if target is not root else container, rng, str(key), copy.deepcopy(at))
        if not root:
            root.append(at)
    elif way < 0.88:
        container[key] = [at] if rng.random() < 0.5 else {odd_values.key(rng): at}
    elif way < 0.94 and isinstance(container, dict):
        container[_misspelt(str(key), rng)] = container.pop(key)
    elif isinstance(at, str):
        container[key] = _misspelt(at, rng)
    elif isinstance(at, int):
        container[key] = at + rng.choice((-1, 1, at, -2 * at, 0.5))
    else:
        container[key] = str(at)


def alike(value: Any, rng: Random) -> Any:
    """Another value of the same type, often a possible one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(
            (0, 1, 2, 3, 7, 8, 64, 10_000, -1, 2 * value, value + 1, value // 2, 2**31, 2**63, 10**18, 10**40)
        )
    if isinstance(value, float):
        return rng.choice((0.0, 1.0, 0.5, -0.5, 2 * value, 1e-30, 1e30, 1e300, float("inf"), float("nan"), 1))
    if isinstance(value, str):
        return rng.choice(
            (
                value + rng.choice(("x", "é", " ", ".", "/", "-", "x" * 70, "\u202e", "\x9b", "{", "}", "$")),
                value[:-1],
                value.upper(),
                odd_values.text(rng),
            )
        )
    return rng.choice((0, 1, "x", True, None))


def _insert(container: Any, rng: Random, key: str, item: Any) -> None:
    if isinstance(container, dict):
        container[key] = item
    else:
        container.insert(rng.randint(0, len(container)), item)


def _misspelt(word: str, rng: Random) -> str:
    at = rng.randint(0, len(word))
    odd = rng.choice(
        ("x", "_", " ", ".", "é", "\x1b", "\x07", "\x9b", "\ud800", "\n", "0", "/", "\0", odd_values.text(rng))
    )
    return rng.choice((word[:at] + odd + word[at:], word[:at] + word[at + 1 :], word.upper(), word * 2))


def yaml_text(tree: Any) -> str:
    literal: list[str] = []
    try:
        made: str = yaml.safe_dump(_marked(tree, literal), sort_keys=False, width=10_000)
    except (yaml.YAMLError, ValueError):
        made = repr(tree)
    return _filled(made, literal, "")


def json_text(tree: Any) -> str:
    literal: list[str] = []
    return _filled(json.dumps(_marked(tree, literal), ensure_ascii=True), literal, '"')


def _marked(tree: Any, literal: list[str]) -> Any:
    """With a word for each raw text; numbers that Python does not print are texts as well."""
    if isinstance(tree, Raw):
        literal.append(tree.text)
        return f"RAW{len(literal) - 1}WAR"
    if isinstance(tree, dict):
        return {_marked(key, literal): _marked(item, literal) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_marked(item, literal) for item in tree]
    return tree


def _filled(made: str, literal: list[str], quote: str) -> str:
    for number, raw in enumerate(literal):
        made = made.replace(f"{quote}RAW{number}WAR{quote}", raw)
    return made
