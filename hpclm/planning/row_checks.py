"""JSONL rows, checked before the job is queued: one finding per bad line, with file and line.

What a row is and what is wrong with one is `data.rows`, which the ranks ask as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpclm.core.files import open_file
from hpclm.core.findings import Finding, Findings
from hpclm.core.nearest import either
from hpclm.core.spec import TaskTemplate
from hpclm.data.rows import MAX_LINE_BYTES, Problem, RowError, lines_of, parse, problems, word
from hpclm.data.template_text import fields
from hpclm.planning.task import Role

# About a second of reading, and this much of each further file; the ranks check every row again.
MAX_BYTES = 64 << 20
MIN_FILE_BYTES = 4 << 20
MAX_FINDINGS = 10


@dataclass
class Budget:
    """Bytes that the checks of one plan may still read."""

    left: int = MAX_BYTES


@dataclass
class RowReport:
    """What a file contains.

    Attributes:
        rows: rows read (empty lines do not count). `complete`: whether that is all of them.
        seen: field names by taskname, over the rows read.
    """

    path: str
    rows: int = 0
    complete: bool = True
    seen: dict[str, set[str]] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)
    more: int = 0

    def fault(self, line: int, problem: Problem) -> None:
        """Note a bad line; beyond the first ten only their number is kept."""
        if len(self.faults) < MAX_FINDINGS:
            self.faults.append(Finding("error", f"{self.path}:{line}", problem.message, problem.rule))
        else:
            self.more += 1


def read_rows(path: str, role: Role, templates: Sequence[TaskTemplate], budget: Budget) -> RowReport:
    """Check `path` line by line. Raises OSError if it cannot be read."""
    report = RowReport(path)
    by_name = {template.taskname: template for template in templates}
    left = max(budget.left, MIN_FILE_BYTES)
    with open_file(Path(path)) as file:
        for number, line in lines_of(file):
            report.rows += 1
            _check_line(report, number, line, role, by_name)
            left -= len(line)
            budget.left -= len(line)
            if len(line) > MAX_LINE_BYTES or left <= 0:
                report.complete = len(line) <= MAX_LINE_BYTES and not file.read(1)
                break
    return report


def _check_line(report: RowReport, number: int, line: bytes, role: Role, templates: dict[str, TaskTemplate]) -> None:
    try:
        row = parse(line)
    except RowError as error:
        report.fault(number, error.problem)
        return
    name = row.get("taskname")
    if isinstance(name, str) and name in templates:
        report.seen.setdefault(name, set()).update(row)
    for problem in problems(row, templates, learns=role != "test"):
        report.fault(number, problem)


def findings(
    reports: Sequence[RowReport], role: Role, templates: Sequence[TaskTemplate], wheres: Sequence[str]
) -> Findings:
    """What the files of one role contain together.

    Args:
        wheres: for each template, the place of its prompt_template.
    """
    found = Findings()
    for report in reports:
        found.extend(report.faults)
        if report.more:
            found.error(report.path, f"{report.more} more lines with errors; fix the file", "row")
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
                    f"no row{partly} of {files} has taskname {template.taskname!r}; add rows, or remove the template",
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
                f"{{{absent[0]}}} is missing from all rows{partly} of {files}; {hint}"
                f"the rows have {_words(there) or 'nothing else'}",
                "template fields are in the rows",
                absent[0],
                there,
            )
        unused = sorted(seen - set(fields(template.prompt_template)) - {"taskname", template.answer_field})
        if unused:
            found.info(where, f"the template does not use {_words(unused)} of {files}", "row fields are used")
    return found


def _words(keys: Sequence[str]) -> str:
    return ", ".join(word(key) for key in keys[:20]) + (" …" if len(keys) > 20 else "")
