"""JSONL rows: the one parser and the one validator, for the plan on the login node and for the ranks alike.

A row is an object with `taskname` and the fields of that task's template, all of them text. Semantics as in NeMo's
gpt_prompt_learning_dataset.py: a field a row lacks becomes empty; values that are not text fail there with a TypeError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from hpclm.core.errors import DataError
from hpclm.core.nearest import nearest_name
from hpclm.core.spec import TaskTemplate
from hpclm.data.template_text import fields

# More than any model reads: a longer row is a file of another kind, and would take minutes to tokenise.
MAX_LINE_BYTES = 1 << 20
_SHOWN = 40

Row = dict[str, str]


@dataclass(frozen=True)
class Problem:
    """What is wrong with one row, and how to fix it. `rule`: the broken rule's stable name."""

    message: str
    rule: str


class RowError(ValueError):
    """A line that is not a row."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(message, "row")


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not empty; a line too long is cut, which `parse` refuses.

    By bytes and not by `splitlines`: JSON strings may contain U+2028 and similar characters unescaped.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if line.strip():
            yield number, line
        if len(line) > MAX_LINE_BYTES:
            return


def parse(line: bytes) -> dict[str, object]:
    """The object on a line. Raises RowError."""
    if len(line) > MAX_LINE_BYTES:
        raise RowError(f"is longer than {MAX_LINE_BYTES >> 20} MiB; one row is one line")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RowError(f"is not UTF-8 text at byte {error.start}; convert the file") from None
    except json.JSONDecodeError as error:
        raise RowError(f"is not valid JSON ({error.msg} at column {error.colno}); write one object per line") from None
    except ValueError:
        raise RowError("is not valid JSON (a number too long); write one object per line") from None
    except RecursionError:
        raise RowError("is nested too deeply; a row must be a flat JSON object of text") from None
    if not isinstance(row, dict):
        raise RowError(f'is {kind_of(row)}; a row must be an object such as {{"taskname": …}}')
    return row


def problems(row: Mapping[str, object], templates: Mapping[str, TaskTemplate], *, learns: bool) -> Iterator[Problem]:
    """Everything that is wrong with a row.

    Args:
        templates: by taskname.
        learns: whether the row is to be learned from, so that it must hold its answer.
    """
    name = row.get("taskname")
    if name is None:
        yield Problem(f"has no taskname; add it, one of {', '.join(templates)}", "row has a taskname")
        return
    template = templates.get(name) if isinstance(name, str) else None
    if template is None:
        near = nearest_name(str(name), templates)
        hint = f"did you mean {near!r}? " if near else ""
        what = f"taskname {str(name)[:60]!r} has no template; {hint}templates: {', '.join(templates)}"
        yield Problem(what, "taskname has a template")
        return
    for key, value in row.items():
        if not isinstance(value, str):
            yield Problem(f"{word(key)} is {kind_of(value)}; write it as text in quotes", "row values are text")
        elif has_surrogate(value) or has_surrogate(key):
            what = f"{word(key)} has half of a surrogate pair, which is not a character; correct the \\u escape"
            yield Problem(what, "row values are text")
    answer = template.answer_field
    if learns and answer is not None and answer in fields(template.prompt_template) and answer not in row:
        what = f"has no {answer!r}, the answer to train on; add it, or remove the row"
        yield Problem(what, "rows to learn from have the answer")


def checked(line: bytes, where: str, templates: Mapping[str, TaskTemplate], *, learns: bool) -> Row:
    """A line's row, sound in every respect. Raises DataError, which begins with `where`, for its first problem."""
    try:
        row = parse(line)
    except RowError as error:
        raise DataError(f"{where}: {error}") from None
    for problem in problems(row, templates, learns=learns):
        raise DataError(f"{where}: {problem.message}")
    return {key: value for key, value in row.items() if isinstance(value, str)}


def has_surrogate(text: str) -> bool:
    """Whether the text has half of a surrogate pair, as `"\\ud800"` in JSON gives."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def word(key: str) -> str:
    """A row's key for a message: unchanged if it fits on a line."""
    return key if key.isprintable() and 0 < len(key) <= _SHOWN else repr(key[:_SHOWN])


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "not text")
