"""Dataclasses to JSON and back, every value checked: the only deserialiser.

What comes from a file was written by another process, perhaps of another version or half damaged. `from_dict` checks
everything: a wrong type or an unknown key is a ValueError that names the place (`StageSpec.model.num_layers`).
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from hpclm.core.files import read_object

T = TypeVar("T")

_SCALARS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def to_dict(value: Any) -> dict[str, Any]:
    """A dataclass as plain JSON-ready containers, which share nothing with it that can change."""
    return {name: _as_plain(getattr(value, name)) for name in _names_of(cast(Hashable, type(value)))}


def _as_plain(value: Any) -> Any:
    """What dataclasses.asdict does, without copying what cannot change: a sweep writes thousands of these."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)([_as_plain(item) for item in value])
    if isinstance(value, dict):
        return {key: _as_plain(item) for key, item in value.items()}
    return to_dict(value) if dataclasses.is_dataclass(value) else copy.deepcopy(value)


@cache
def _names_of(cls: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]


def taken(cls: type[T], source: object, **derived: Any) -> T:
    """A dataclass whose fields are `source`'s attributes of the same names, nested ones too, and `derived` for others.

    So that a recipe's key is declared in the schema and copied by its name. Raises TypeError for a field that is
    required and in neither.
    """
    values = {
        name: derived[name] if name in derived else _plain(hint, getattr(source, name))
        for name, (hint, _, _) in _fields(cast(Hashable, cls)).items()
        if name in derived or hasattr(source, name)
    }
    return cls(**values)


def _plain(hint: Any, value: Any) -> Any:
    """A schema's value as a dataclass holds it: lists for tuples where the field is a list, copies of mappings."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else _plain(options[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return taken(hint, value)
    if origin in (list, tuple):
        inner = typing.get_args(hint)[0]
        return origin(_plain(inner, one) for one in value)
    return dict(value) if origin is dict else value


def from_dict(cls: type[T], raw: object, *, ignore_unknown: bool = False, where: str = "") -> T:
    """Rebuild a (nested) dataclass from `to_dict`'s output.

    Args:
        ignore_unknown: whether unknown keys are ignored: for records that a later version may
            have written, never for what decides what a rank does.
        where: what to call the value in messages; default the class's name.

    Raises ValueError for an unknown or missing key and for a value of the wrong type, with its place.
    """
    where = where or cls.__name__
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: must be an object, not {_shown(raw)}")
    fields = _fields(cast(Hashable, cls))
    if not ignore_unknown and (unknown := sorted(str(key) for key in raw if key not in fields)):
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; written by another version of hpclm?")
    values, missing = {}, []
    for key, (hint, as_is, required) in fields.items():
        if key in raw:
            item = raw[key]
            values[key] = item if type(item) in as_is else _value(hint, item, f"{where}.{key}", ignore_unknown)
        elif required:
            missing.append(key)
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing; written by another version of hpclm?")
    return cls(**values)


def read_record(cls: type[T], path: Path) -> T | None:
    """The record in a file that another process writes; None where it is missing, incomplete or something else."""
    raw = read_object(path)
    if raw is None:
        return None
    try:
        return from_dict(cls, raw, ignore_unknown=True)
    except ValueError:
        return None


@cache
def _fields(cls: Hashable) -> dict[str, tuple[Any, frozenset[type], bool]]:
    """By name of a dataclass's field: its hint, the types taken without a change, and whether it must be given."""
    hints = typing.get_type_hints(cls)
    return {
        field.name: (
            hints[field.name],
            _taken_as_is(hints[field.name]),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.init
    }


def _value(hint: Any, item: Any, where: str, ignore_unknown: bool) -> Any:
    """`item` as the type hint says. Raises ValueError."""
    if type(item) in _taken_as_is(hint):
        return item
    if hint in (Any, object):
        return item
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _one_of(typing.get_args(hint), item, where, ignore_unknown)
    if origin is Literal:
        choices = typing.get_args(hint)
        # 1 == True == 1.0: the type decides as well
        if any(item == choice and type(item) is type(choice) for choice in choices):
            return item
        raise ValueError(f"{where}: {_shown(item)} is not one of {', '.join(map(str, choices))}")
    if origin is not None:
        return _container(origin, typing.get_args(hint), item, where, ignore_unknown)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, item, ignore_unknown=ignore_unknown, where=where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint, item, where)
    return _scalar(hint, item, where)


@cache
def _taken_as_is(hint: Hashable) -> frozenset[type]:
    """The plain types that a hint takes without a change: most values of most records."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return frozenset(option for option in options if option in _SCALARS or option is type(None))


def _one_of(options: tuple[Any, ...], item: Any, where: str, ignore_unknown: bool) -> Any:
    """The first option of a union that takes the item as it is; a whole number stays one in `int | float`."""
    if item is None:
        if type(None) in options:
            return None
        raise ValueError(f"{where}: null is not allowed")
    wanted = [option for option in options if option is not type(None)]
    exact = [option for option in wanted if option is type(item)]
    failures = []
    for option in (*exact, *wanted):
        try:
            return _value(option, item, where, ignore_unknown)
        except ValueError as error:
            failures.append(error)
    raise failures[0]


def _container(origin: Any, arguments: tuple[Any, ...], item: Any, where: str, ignore_unknown: bool) -> Any:
    if origin is dict:
        if not isinstance(item, Mapping) or not all(isinstance(key, str) for key in item):
            raise ValueError(f"{where}: must be an object, not {_shown(item)}")
        return {key: _value(arguments[1], value, f"{where}.{key}", ignore_unknown) for key, value in item.items()}
    if origin not in (list, tuple):
        raise TypeError(f"{where}: no rule for {origin}")
    if not isinstance(item, (list, tuple)):
        raise ValueError(f"{where}: must be a list, not {_shown(item)}")
    build: Callable[[list[Any]], Any] = origin
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(item) != len(arguments):
            raise ValueError(f"{where}: {len(arguments)} values are required, not {len(item)}")
        hints = arguments
    else:
        hints = (arguments[0],) * len(item)
    return build(
        [
            _value(hint, one, f"{where}[{i}]", ignore_unknown)
            for i, (hint, one) in enumerate(zip(hints, item, strict=True))
        ]
    )


def _member(hint: type[Enum], item: Any, where: str) -> Enum:
    try:
        return hint(item)
    except ValueError:
        raise ValueError(f"{where}: {_shown(item)} is not one of {', '.join(str(one.value) for one in hint)}") from None


def _scalar(hint: Any, item: Any, where: str) -> Any:
    if hint not in _SCALARS:
        raise TypeError(f"{where}: no rule for {hint}")
    # True is an int in Python, but not a number in JSON
    if not isinstance(item, _SCALARS[hint]) or (isinstance(item, bool) and hint is not bool):
        raise ValueError(f"{where}: must be {_NAMES[hint]}, not {_shown(item)}")
    if hint is not float or not isinstance(item, int):
        return item
    try:
        return float(item)
    except OverflowError:
        raise ValueError(f"{where}: is too large a number") from None


def _shown(item: object) -> str:
    try:
        text = repr(item)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
