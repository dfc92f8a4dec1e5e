"""The files a stage reads: JSONL rows and text. Checked on the login node, so that no job is queued with a typo."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpclm.core.spec import PromptData, TaskTemplate
from hpclm.core.stage_inputs import Input
from hpclm.planning import row_checks
from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import Role

# Most directory entries that are searched for a match.
MAX_ENTRIES = 200_000

ReportKey = tuple[str, str, tuple[str, ...]]


class InputChecks:
    """Checks the inputs of a plan's stages; a file that several stages read is read once."""

    def __init__(self) -> None:
        self.budget = row_checks.Budget()
        self.reports: dict[ReportKey, row_checks.RowReport | str] = {}

    def check_rows(
        self,
        stage: StageContext,
        owner: StageContext,
        writer: StageContext,
        data: PromptData,
        templates: tuple[TaskTemplate, ...],
    ) -> int | None:
        """Every row of the roles that `stage` reads.

        Args:
            owner: the stage that has `data`, for its places.
            writer: the stage that has `templates`.

        Returns the number of training rows; None where unknown.
        """
        train_rows: int | None = None
        for role in stage.task.roles:
            reports = self._reports(owner, role, getattr(data, role), templates)
            wheres = [writer.where("task_templates", i, "prompt_template") for i in range(len(templates))]
            readable = [report for report in reports if report is not None]
            if templates:
                stage.findings.extend(row_checks.findings(readable, role, templates, wheres).items)
            if readable and len(readable) == len(reports):
                count = sum(report.rows for report in readable)
                if not count and all(report.complete for report in readable):
                    stage.error(("data", role), "the files contain no rows; add rows", "rows exist", 0)
                if role == "train" and all(report.complete for report in readable):
                    train_rows = count
        return train_rows

    def _reports(
        self, owner: StageContext, role: Role, paths: list[str], templates: tuple[TaskTemplate, ...]
    ) -> list[row_checks.RowReport | None]:
        found: list[row_checks.RowReport | None] = []
        for index, path in enumerate(paths):
            key = (path, role, tuple(template.taskname + "\0" + template.prompt_template for template in templates))
            if key not in self.reports:
                self.reports[key] = self._read(path, role, templates)
            report = self.reports[key]
            if isinstance(report, str):
                owner.error(("data", role, index), report, "data exists", path)
                found.append(None)
            else:
                found.append(report)
        return found

    def _read(self, path: str, role: Role, templates: tuple[TaskTemplate, ...]) -> row_checks.RowReport | str:
        if Path(path).is_dir():
            return f"{path}: is a folder; give the JSONL file in it"
        # Opening a pipe would block until it has a writer.
        if Path(path).exists() and not Path(path).is_file():
            return f"{path}: is not a regular file; give a JSONL file"
        try:
            return row_checks.read_rows(path, role, templates, self.budget)
        except FileNotFoundError:
            return f"{path}: does not exist; put the rows there, or set data.{role} to where they are"
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror}); fix its permissions, or give another file"


def check_text(stage: StageContext, inputs: Sequence[Input], pattern: str) -> None:
    """Every path of text exists and contains a matching file."""
    for one in (one for one in inputs if one.kind == "text"):
        if not Path(one.path).exists():
            what = f"{one.path}: does not exist; put the text there, or set text.paths"
            stage.error(one.keys, what, "text exists", one.path)
        elif Path(one.path).is_dir() and not any(_matches(one.path, pattern)):
            what = f"{one.path}: no file in it matches {pattern!r}; change text.pattern or the folder"
            stage.error(one.keys, what, "text exists", one.path)


def _matches(folder: str, pattern: str) -> Iterator[bool]:
    """True for each non-empty file that matches, and once if there are too many entries to search."""
    entries = 0
    for root, _, names in os.walk(folder):
        for name in names:
            entries += 1
            if entries > MAX_ENTRIES:
                yield True
                return
            if fnmatch.fnmatchcase(name, pattern) and (Path(root) / name).is_file():
                yield True


def is_folder(path: str) -> bool:
    """Whether `path` is a readable folder."""
    return Path(path).is_dir()
