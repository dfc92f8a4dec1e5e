"""What every section shares: strictness, and the kinds of text a recipe may contain."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from hpclm.core.nearest import nearest_name
from hpclm.core.registry import Registry
from hpclm.core.secrets import looks_secret

MAX_LINE = 4096
MAX_TEXT = 100_000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Section(BaseModel):
    """A mapping of a recipe: immutable, no conversions between types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def fault(message: str) -> PydanticCustomError:
    """A validator's own message (what is wrong; how to fix it), shown unchanged."""
    # Braces would be read as a template's fields.
    return PydanticCustomError("hpclm", "{message}", {"message": message})


def shown(text: str, limit: int = 60) -> str:
    """Text for a message: quoted, escaped and short."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def one_line(text: str) -> str:
    """Text that may reach a script, a log or a screen: not empty, one line, no invisible characters."""
    if not text.strip():
        raise fault("is empty; write a value or leave the key out")
    if len(text) > MAX_LINE:
        raise fault(f"is longer than {MAX_LINE} characters; shorten it")
    bad = next((character for character in text if not character.isprintable()), None)
    if bad is not None:
        kind = "a line break" if bad in "\n\r" else f"the invisible character U+{ord(bad):04X}"
        raise fault(f"{shown(text)} contains {kind}; write it on one line of printable characters")
    return text


def plain_name(text: str) -> str:
    """A name that can be a folder, a job name and an argument."""
    if not _NAME.fullmatch(text) or text.startswith((".", "-")):
        raise fault(
            f"{shown(text)} is not a valid name; use 1 to 64 letters, digits, '.', '_' and '-', "
            "not starting with '.' or '-'"
        )
    return text


def absolute_path(text: str, info: ValidationInfo) -> str:
    """A path, relative to the recipe's folder."""
    one_line(text)
    if text.startswith("~"):
        raise fault(f"{shown(text)}: ~ is not expanded; write the whole path, or one relative to the recipe")
    directory: str = (info.context or {}).get("directory", ".")
    return os.path.abspath(os.path.join(directory, text))  # noqa: PTH100, PTH118 - Path keeps '..'


def prose(text: str) -> str:
    """Text that is data for the model and never reaches a script: line breaks allowed."""
    if not text:
        raise fault("is empty; write the text")
    if len(text) > MAX_TEXT:
        raise fault(f"is longer than {MAX_TEXT} characters; shorten it")
    bad = next((c for c in text if c not in "\n\t\r" and unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise fault(f"contains the control character U+{ord(bad):04X}; remove it")
    return text


def no_secrets(environment: dict[str, str]) -> dict[str, str]:
    """Refuse a token or password without repeating it."""
    for name, value in environment.items():
        if looks_secret(name, value):
            raise fault(
                f"{name} looks like a secret, and this is written to the run's folder; leave it out, and name it in "
                f"the site profile: secrets: {{{name}: {{from_env: {name}}}}}"
            )
    return environment


def described(value: object) -> str:
    """A description of a wrong value, short and escaped."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return str(value)


def registered(registry: Registry[object]) -> Any:
    """The type of a key whose value names an entry of a registry; including other packages' entries."""

    def known(value: object) -> str:
        if isinstance(value, str) and value in registry:
            return registry.canonical(value)
        names = registry.names()
        near = nearest_name(str(value), names)
        hint = f"did you mean {near}? " if near else ""
        raise fault(f"must be one of the allowed values, not {described(value)}; {hint}choose {', '.join(names)}")

    # The documentation lists what hpclm itself has.
    return Annotated[str, PlainValidator(known), WithJsonSchema({"enum": list(registry.builtin_names())})]


Name = Annotated[str, AfterValidator(plain_name)]
Line = Annotated[str, AfterValidator(one_line)]
PathText = Annotated[str, AfterValidator(absolute_path)]
Prose = Annotated[str, AfterValidator(prose)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Width = Annotated[int, Field(ge=1, le=10**6)]
NotNegative = Annotated[int, Field(ge=0, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
