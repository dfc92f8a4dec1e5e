"""JSONL rows, looked through before the queue: one finding a bad line, with its own file and line.

A row is an object with `taskname` and the fields of that task's template, all of them text. Semantics as in NeMo's
gpt_prompt_learning_dataset.py: a field a row lacks becomes empty; values that are not text fail there with a TypeError.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hpclm.core.nearest import either
from hpclm.core.spec import TaskTemplate
from hpclm.planning.findings import Finding, Findings
from hpclm.planning.template_checks import fields

Role = Literal["train", "validation", "test"]

# About a second of reading, and of each further file this much; the ranks check every row again.
MAX_BYTES = 64 << 20
MIN_FILE_BYTES = 4 << 20
MAX_LINE_BYTES = 16 << 20
MAX_FINDINGS = 10


@dataclass
class Budget:
    """Bytes that the checks of one plan may still read."""

    left: int = MAX_BYTES


@dataclass
class RowReport:
    """What a file holds.

    Attributes:
        rows: rows read (empty lines are none). `complete`: whether that is all of them.
        seen: field names by taskname, over the rows read.
    """

    path: str
    rows: int = 0
    complete: bool = True
    seen: dict[str, set[str]] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)
    more: int = 0

    def fault(self, line: int, message: str, rule: str) -> None:
        """Note a bad line; beyond the first ten only their number is kept."""
        if len(self.faults) < MAX_FINDINGS:
            self.faults.append(Finding("error", f"{self.path}:{line}", message, rule))
        else:
            self.more += 1


def read_rows(path: str, role: Role, templates: Sequence[TaskTemplate], budget: Budget) -> RowReport:
    """Look through `path` line by line. Raises OSError where it cannot be read."""
    report = RowReport(path)
    by_name = {template.taskname: template for template in templates}
    number, left = 0, max(budget.left, MIN_FILE_BYTES)
    with Path(path).open("rb") as file:
        while True:
            if left <= 0:
                report.complete = not file.read(1)
                break
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                break
            left -= len(line)
            budget.left -= len(line)
            number += 1
            if len(line) > MAX_LINE_BYTES:
                report.fault(number, f"is longer than {MAX_LINE_BYTES >> 20} MiB; one row is one line", "row")
                report.complete = False
                break
            # Empty lines are no rows, here and on the ranks.
            if line.strip():
                report.rows += 1
                _check_line(report, number, line, role, by_name)
    return report


def _check_line(report: RowReport, number: int, line: bytes, role: Role, templates: dict[str, TaskTemplate]) -> None:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        report.fault(number, "is not UTF-8 text; convert the file", "row")
        return
    except ValueError as error:
        what = getattr(error, "msg", "a number too long")
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        report.fault(number, f"is not JSON ({what}{column}); write one object a line", "row")
        return
    except RecursionError:
        report.fault(number, "is nested too deep; a row is a flat object of text", "row")
        return
    if not isinstance(row, dict):
        report.fault(number, f'is {_kind(row)}; a row is an object such as {{"taskname": …}}', "row")
        return
    _check_row(report, number, row, role, templates)


def _check_row(
    report: RowReport, number: int, row: dict[str, object], role: Role, templates: dict[str, TaskTemplate]
) -> None:
    name = row.get("taskname")
    if name is None:
        report.fault(number, f"has no taskname; add it, one of {', '.join(templates)}", "row has a taskname")
        return
    template = templates.get(name) if isinstance(name, str) else None
    if template is None:
        near = difflib.get_close_matches(str(name), templates, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        report.fault(
            number,
            f"taskname {str(name)[:60]!r} has no template; {hint}templates: {', '.join(templates)}",
            "taskname has a template",
        )
        return
    report.seen.setdefault(template.taskname, set()).update(row)
    for key, value in row.items():
        if not isinstance(value, str):
            message = f"{_word(key)} is {_kind(value)}; write it as text, in quotes"
            report.fault(number, message, "row values are text")
    answer = template.answer_field
    if role != "test" and answer is not None and answer in fields(template.prompt_template) and answer not in row:
        report.fault(
            number,
            f"has no {answer!r}, the answer to learn; add it, or drop the row",
            "rows to learn from have the answer",
        )


def findings(
    reports: Sequence[RowReport], role: Role, templates: Sequence[TaskTemplate], wheres: Sequence[str]
) -> Findings:
    """What the files of one role say together.

    Args:
        wheres: for each template, the place of its prompt_template.
    """
    found = Findings()
    for report in reports:
        found.extend(report.faults)
        if report.more:
            found.error(report.path, f"{report.more} more lines like these; mend the file", "row")
        if not report.complete:
            found.info(
                report.path,
                f"only the first {report.rows} rows were checked; the run checks them all",
                "rows",
                report.rows,
            )
    files = either([report.path for report in reports]) if reports else ""
    partly = "" if all(report.complete for report in reports) else " checked"
    for template, where in zip(templates, wheres, strict=True):
        seen = set().union(*(report.seen.get(template.taskname, set()) for report in reports))
        if not seen:
            if any(report.seen for report in reports):
                found.warning(
                    where,
                    f"no row{partly} of {files} has taskname {template.taskname!r}; add rows, or drop the template",
                    "every task has rows",
                )
            continue
        wanted = [name for name in fields(template.prompt_template) if name != template.answer_field]
        absent = [name for name in wanted if name not in seen]
        if absent:
            there = sorted(seen - {"taskname"})
            near = difflib.get_close_matches(absent[0], there, n=1)
            hint = f"did you mean {{{near[0]}}}? " if near else ""
            found.error(
                where,
                f"{{{absent[0]}}} is in no row{partly} of {files}; {hint}"
                f"the rows have {_words(there) or 'nothing else'}",
                "template fields are in the rows",
                absent[0],
                there,
            )
        unused = sorted(seen - set(fields(template.prompt_template)) - {"taskname", template.answer_field})
        if unused:
            found.info(where, f"the template does not use {_words(unused)} of {files}", "row fields are used")
    return found


def _word(key: str) -> str:
    """A row's key for a message: as it is where that fits on a line."""
    return key if key.isprintable() and 0 < len(key) <= 40 else repr(key[:40])


def _words(keys: Sequence[str]) -> str:
    return ", ".join(_word(key) for key in keys[:20]) + (" …" if len(keys) > 20 else "")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "no text")
