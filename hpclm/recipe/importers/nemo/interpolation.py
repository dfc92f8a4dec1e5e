"""OmegaConf's `${a.b}`: another value of the same file. Nothing else between `${` and `}` is read."""

from __future__ import annotations

import re

from hpclm.core.errors import RecipeError
from hpclm.recipe.tree import Node, Scalar

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_KEY = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_DEPTH = 20


def interpolated(root: Node) -> Node:
    """The tree with every reference replaced, each value at the place of its reference. Raises RecipeError."""
    faults: list[str] = []
    resolved = _resolve(root, root, (), faults)
    if faults:
        raise RecipeError("\n".join(dict.fromkeys(faults)))
    return resolved


def _resolve(node: Node, root: Node, seen: tuple[str, ...], faults: list[str]) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _resolve(inner, root, seen, faults) for key, inner in node.value.items()}, node.place)
    if isinstance(node.value, list):
        return Node([_resolve(inner, root, seen, faults) for inner in node.value], node.place)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    try:
        return _text(node, node.value, root, seen, faults)
    except RecipeError as error:
        faults.append(str(error))
        return Node(None, node.place)


def _text(node: Node, text: str, root: Node, seen: tuple[str, ...], faults: list[str]) -> Node:
    whole = _REFERENCE.fullmatch(text)
    if whole:
        return Node(_referred(node, whole[1], root, seen, faults).value, node.place)

    def inserted(match: re.Match[str]) -> str:
        value = _referred(node, match[1], root, seen, faults).value
        if isinstance(value, dict | list):
            raise RecipeError(f"{node.place}: ${{{match[1]}}} is not a plain value, so it cannot be part of a text")
        return _shown(value)

    found = _REFERENCE.sub(inserted, text)
    if "${" in found:
        raise RecipeError(
            f"{node.place}: {found[:80]!r} contains a reference that cannot be read; write the value itself"
        )
    return Node(found, node.place)


def _referred(node: Node, key: str, root: Node, seen: tuple[str, ...], faults: list[str]) -> Node:
    if not _KEY.fullmatch(key):
        raise RecipeError(
            f"{node.place}: ${{{key[:60]}}} is not the name of a value in this file (resolvers such as oc.env are not "
            "run); write the value itself"
        )
    if key in seen or len(seen) > _DEPTH:
        raise RecipeError(f"{node.place}: ${{{key}}} refers to itself; write the value itself")
    found = root.get(*key.split("."))
    if found is None:
        raise RecipeError(f"{node.place}: ${{{key}}} refers to nothing in this file; write the value itself")
    return _resolve(found, root, (*seen, key), faults)


def _shown(value: Scalar) -> str:
    """A value in text, formatted as OmegaConf does."""
    return str(value)
