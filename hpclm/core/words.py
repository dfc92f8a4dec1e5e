"""Enums whose members are their own text, in JSON as on the screen."""

from __future__ import annotations

from enum import Enum


class Word(str, Enum):
    """A fixed set of words. `str()`, f-strings and JSON give the word itself on every Python."""

    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, spec: str) -> str:
        return str.__format__(self, spec)
