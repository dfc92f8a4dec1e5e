"""Turns pydantic's errors into messages for users: where, what, and how to fix it."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from hpclm.recipe.schema.base import described
from hpclm.recipe.tree import Node, Place

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d+([_,]\d+)+")


def faults(error: ValidationError, tree: Node, root: type[BaseModel]) -> list[str]:
    """One line per error: `recipes/x.yaml:14 optim.lr: must be …; …`. `root`: the model of the whole tree."""
    return [_fault(detail, tree, root) for detail in error.errors(include_url=False)]


def unknown_key(place: Place, key: str, known: list[str], elsewhere: list[str]) -> str:
    """The message for an unknown key.

    Args:
        known: keys that are valid at this place.
        elsewhere: full keys of the same last name in other sections.
    """
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif elsewhere:
        hint = f"did you mean {' or '.join(elsewhere)}?"
    else:
        hint = f"known here: {', '.join(sorted(known))}"
    return f"{place}: unknown key; {hint}"


def _fault(detail: Any, tree: Node, root: type[BaseModel]) -> str:
    kind, loc = detail["type"], [part for part in detail["loc"] if part != "[key]"]
    keys = _written_keys(loc, tree)
    place = tree.where(*keys)
    if kind == "extra_forbidden":
        section = _section(keys[:-1], root)
        known = _keys_of(section) if section else []
        return unknown_key(place, str(keys[-1]), known, _elsewhere(str(keys[-1]), root))
    if kind == "missing":
        return f"{place}: is missing; add it ({_description(keys, root)})"
    return f"{place}: {_words(kind, detail)}"


def _written_keys(loc: list[Any], tree: Node) -> list[str | int]:
    """The location without the parts pydantic adds for alternatives of a type."""
    keys: list[str | int] = []
    for part in loc:
        node = tree.get(*keys)
        if node is not None and not isinstance(node.value, dict | list):
            break
        keys.append(part)
    return keys


_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, as in [a, b]",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
}


def _words(kind: str, detail: Any) -> str:
    value, context = detail["input"], detail.get("ctx", {})
    if kind == "hpclm":
        return str(context["message"])
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, not {described(value)}{_type_hint(kind, value)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"must be one of the allowed values, not {described(value)}; {hint}choose {', '.join(choices)}"
    if kind == "too_short":
        return f"has {context['actual_length']} entries; write at least {context['min_length']}"
    bounds = {"greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least")}
    bounds |= {"less_than": ("lt", "less than"), "less_than_equal": ("le", "at most")}
    if kind in bounds:
        name, word = bounds[kind]
        return f"{described(value)} is out of range; choose {word} {context[name]:g}"
    return f"{detail['msg'][:1].lower()}{detail['msg'][1:]} (got {described(value)}); see docs/recipe.md"


def _type_hint(kind: str, value: Any) -> str:
    if kind == "string_type" and not isinstance(value, dict | tuple):
        return "; put it in quotes" if value is not None else "; write it, or leave the key out"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        if _NUMBER.fullmatch(value):
            return "; leave the quotes out"
        if _GROUPED.fullmatch(value):
            return f"; write it without separators: {value.replace('_', '').replace(',', '')}"
        return "; write a number"
    if kind == "bool_type" and str(value).lower() in ("yes", "no", "on", "off"):
        return f"; write {'true' if str(value).lower() in ('yes', 'on') else 'false'}"
    if kind == "tuple_type" and not isinstance(value, dict):
        return "; put it in brackets" if value is not None else "; write [] for none"
    return "; fix the value"


def _section(keys: list[str | int], root: type[BaseModel]) -> type[BaseModel] | None:
    """The model of the mapping at `keys`."""
    model = root
    for key in keys:
        if isinstance(key, int):
            continue
        inner = _model_in(model, key)
        if inner is None:
            return None
        model = inner
    return model


def _model_in(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    for name, info in model.model_fields.items():
        if key == (info.alias or name):
            return section_of(info.annotation)
    return None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section in an annotation: `Model`, `Model | None` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = section_of(argument)
        if found is not None:
            return found
    return None


def _keys_of(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _elsewhere(key: str, root: type[BaseModel]) -> list[str]:
    """Full keys of the sections that have `key`."""
    inner = {name: _model_in(root, name) for name in sorted(_keys_of(root))}
    found = [key] if inner.get(key) is not None else []
    return [*found, *(f"{name}.{key}" for name, model in inner.items() if model is not None and key in _keys_of(model))]


def _description(keys: list[str | int], root: type[BaseModel]) -> str:
    model = _section(keys[:-1], root)
    for name, info in (model.model_fields if model else {}).items():
        if keys[-1] == (info.alias or name):
            return info.description or name
    return "see docs/recipe.md"
