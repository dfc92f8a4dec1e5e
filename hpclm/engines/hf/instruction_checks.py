"""Rows of instructions, read on the login node: every file is there, and every row says something."""

from __future__ import annotations

import itertools
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.data.instructions.instruction_files import rows
from hpclm.data.instructions.instruction_prompts import pieces
from hpclm.data.instructions.instruction_records import RecordError, record
from hpclm.planning.stage_context import StageContext

# Rows of each file that are looked at; a few seconds of reading. The ranks look at all.
MAX_ROWS = 100_000
MAX_FINDINGS = 10


def files(stage: StageContext, data: InstructionData) -> list[str]:
    """Files of rows that the stage's task reads."""
    return [*data.test] if stage.task.answers else [*data.train, *data.validation]


def check(stage: StageContext, data: InstructionData) -> int | None:
    """Adds a finding for each wrong row, the first of them. Returns the number of training rows; None: unknown."""
    total: int | None = 0
    for role in ("test",) if stage.task.answers else ("train", "validation"):
        for number, path in enumerate(getattr(data, role)):
            count = _file(stage, (f"instructions.{role}",), ("instructions", role, number), path, data, role != "test")
            if role == "train":
                total = None if count is None or total is None else total + count
    return total


def _file(
    stage: StageContext, rule: tuple[str], keys: tuple[str | int, ...], path: str, data: InstructionData, learns: bool
) -> int | None:
    """Rows in a file; None where it cannot be read to its end."""
    if not Path(path).exists():
        stage.error(
            keys, f"{path}: does not exist; put the rows there, or set {rule[0]} to where they are", "data exists", path
        )
        return None
    wrong = count = 0
    try:
        for where, row in itertools.islice(rows(Path(path)), MAX_ROWS + 1):
            count += 1
            try:
                found = record(row, where, data, learns=learns)
                if data.template != "chat":
                    pieces(found, data.template, "")
            except RecordError as error:
                wrong += 1
                if wrong <= MAX_FINDINGS:
                    stage.findings.error(where, str(error), "rows")
    except DataError as error:
        text = str(error)
        stage.error(keys, text, "data exists", path)
        return None
    if wrong > MAX_FINDINGS:
        stage.findings.error(path, f"{wrong - MAX_FINDINGS} more rows are wrong", "rows")
    if not count:
        stage.error(keys, f"{path}: contains no rows; add rows", "rows exist", 0)
    return count if count <= MAX_ROWS else None
