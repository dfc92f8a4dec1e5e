"""OmegaConf's references `${a.b}` and the functions that NeMo's launcher adds to them.

`${.x}` is the key x of the same mapping, `${..x}` of the one above. The launcher's YAML of one step is a part of its
whole configuration: `${prompt_learning.run.name}` in it is its own `run.name`, and `${base_results_dir}` is a value of
`config.yaml` or of the command line. Source: omegaconf 2.3, grammar_visitor.py; NeMo-Megatron-Launcher, main.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from hpclm.core.errors import RecipeError
from hpclm.recipe.tree import Node, Scalar, resolve_scalar

_KEY = re.compile(r"\.*[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_DEPTH = 20
_MISSING = "???"
_STEPS = ("prompt_learning", "evaluation")
_FUNCTIONS: dict[str, Callable[[float, float], float]] = {
    "multiply": lambda x, y: x * y,
    "divide_ceil": lambda x, y: math.ceil(x / y),
    "divide_floor": lambda x, y: math.floor(x / y),
}


def interpolated(root: Node, whole: Node | None, matters: Callable[[str], bool]) -> Node:
    """The tree with every reference replaced, each value at the place of its reference.

    Args:
        whole: the configuration that the file is a part of, if it is there.
        matters: whether a key decides something; a reference that cannot be read is an error only there.

    Raises RecipeError with every error at its line.
    """
    faults: list[str] = []
    resolved = _References(root, whole).all_of(root, (), matters, faults)
    if faults:
        raise RecipeError("\n".join(dict.fromkeys(faults)))
    return resolved


class _References:
    def __init__(self, root: Node, whole: Node | None) -> None:
        self.root, self.whole = root, whole

    def all_of(self, node: Node, keys: tuple[str, ...], matters: Callable[[str], bool], faults: list[str]) -> Node:
        if isinstance(node.value, dict):
            entries = {key: self.all_of(one, (*keys, key), matters, faults) for key, one in node.value.items()}
            return Node(entries, node.place)
        if isinstance(node.value, list):
            return Node(
                [self.all_of(one, (*keys, str(i)), matters, faults) for i, one in enumerate(node.value)], node.place
            )
        try:
            return self.value_of(node, keys, ())
        except RecipeError as error:
            if matters(".".join(key for key in keys if not key.isdecimal())):
                faults.append(str(error))
            return node

    def value_of(self, node: Node, keys: tuple[str, ...], seen: tuple[str, ...]) -> Node:
        """`node` with the references in it replaced; `keys`: where it is."""
        if isinstance(node.value, dict):
            return Node({key: self.value_of(one, (*keys, key), seen) for key, one in node.value.items()}, node.place)
        if isinstance(node.value, list):
            return Node([self.value_of(one, (*keys, str(i)), seen) for i, one in enumerate(node.value)], node.place)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        found, rest = self._text(node, node.value, keys, seen)
        assert not rest
        return Node(found.value, node.place)

    def _text(
        self, node: Node, text: str, keys: tuple[str, ...], seen: tuple[str, ...], stop: str = ""
    ) -> tuple[Node, str]:
        """The value of a text up to one of the characters `stop` or its end, and what follows."""
        parts: list[Node] = []
        plain = ""
        while text and text[0] not in stop:
            if text.startswith("${"):
                if plain:
                    parts.append(Node(plain, node.place))
                    plain = ""
                found, text = self._reference(node, text[2:], keys, seen)
                parts.append(found)
            else:
                plain, text = plain + text[0], text[1:]
        if plain or not parts:
            parts.append(Node(plain, node.place))
        if len(parts) == 1:
            return parts[0], text
        if any(isinstance(part.value, dict | list) for part in parts):
            raise RecipeError(f"{node.place}: a reference in a text is not a plain value; write the value itself")
        return Node(
            "".join(_shown(part.value) for part in parts if not isinstance(part.value, dict | list)), node.place
        ), text

    def _reference(self, node: Node, text: str, keys: tuple[str, ...], seen: tuple[str, ...]) -> tuple[Node, str]:
        """What follows `${`, up to its brace."""
        name = re.match(r"[^:{}$]*", text)
        assert name
        word, text = name[0].strip(), text[name.end() :]
        if text.startswith("}"):
            return self._referred(node, word, keys, seen), text[1:]
        if not text.startswith(":") or word not in _FUNCTIONS:
            raise RecipeError(
                f"{node.place}: ${{{word[:60]}…}} cannot be read (functions other than {', '.join(_FUNCTIONS)} are not "
                "run); write the value itself"
            )
        given: list[object] = []
        while text and text[0] in ":,":
            argument, text = self._text(node, text[1:], keys, seen, ",}")
            value = argument.value
            given.append(resolve_scalar(value.strip()) if isinstance(value, str) else value)
        if not text.startswith("}") or len(given) != 2 or not all(isinstance(one, int | float) for one in given):
            raise RecipeError(f"{node.place}: ${{{word}:…}} needs two numbers; write the value itself")
        first, second = (one for one in given if isinstance(one, int | float))
        try:
            return Node(_FUNCTIONS[word](first, second), node.place), text[1:]
        except (ZeroDivisionError, OverflowError):
            raise RecipeError(f"{node.place}: ${{{word}:…}} divides by zero; write the value itself") from None

    def _referred(self, node: Node, word: str, keys: tuple[str, ...], seen: tuple[str, ...]) -> Node:
        if not _KEY.fullmatch(word):
            raise RecipeError(f"{node.place}: ${{{word[:60]}}} is not the name of a value; write the value itself")
        dots = len(word) - len(word.lstrip("."))
        path = (*keys[: len(keys) - dots], *word.lstrip(".").split(".")) if dots else tuple(word.split("."))
        if not dots and path[0] in _STEPS and self.root.get(path[0]) is None:
            path = path[1:]
        whole = ".".join(path)
        if whole in seen or len(seen) > _DEPTH:
            raise RecipeError(f"{node.place}: ${{{word}}} refers to itself; write the value itself")
        found = self.root.get(*path)
        if found is None and self.whole is not None:
            found = self.whole.get(*path)
        if found is None:
            raise RecipeError(
                f"{node.place}: ${{{word}}} refers to nothing in this file; write the value itself, or {whole}=VALUE"
            )
        if found.value == _MISSING:
            raise RecipeError(f"{node.place}: ${{{word}}} needs {whole}, which is not given; write {whole}=VALUE")
        return self.value_of(found, path, (*seen, whole))


def _shown(value: Scalar) -> str:
    """A value in text, formatted as OmegaConf does."""
    return str(value)
