"""Rows of instructions, read on the login node: every file is there, and every row says something."""

from __future__ import annotations

import itertools
import stat
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.core.nearest import nearest_name
from hpclm.data.instructions.instruction_files import rows
from hpclm.data.instructions.instruction_prompts import pieces
from hpclm.data.instructions.instruction_records import KEYS, ROLES, RecordError, record
from hpclm.planning.specs import is_in_run
from hpclm.planning.stage_context import StageContext

# Rows of each file that are looked at; a few seconds of reading. The ranks look at all.
MAX_ROWS = 100_000
MAX_FINDINGS = 10


def files(stage: StageContext, data: InstructionData) -> list[str]:
    """Files of rows that the stage's task reads."""
    return [*data.test] if stage.task.answers else [*data.train, *data.validation]


def _tell(stage: StageContext, path: str, wrong: dict[str, list[str]]) -> None:
    """One finding for each thing that is wrong, at the first of its rows."""
    for message, places in list(wrong.items())[:MAX_FINDINGS]:
        more = len(places) - 1
        rows_alike = f" ({more} more row{'s' if more > 1 else ''} alike)" if more else ""
        stage.findings.error(places[0], f"{message}{rows_alike}", "rows")
    left = sum(map(len, list(wrong.values())[MAX_FINDINGS:]))
    if left:
        stage.findings.error(path, f"{left} more rows are wrong; mend them, or remove them", "rows")


def check(stage: StageContext, data: InstructionData) -> int | None:
    """Adds a finding for each wrong row, the first of them. Returns the number of training rows; None: unknown."""
    if not _names(stage, data):
        return None
    _cache(stage, data)
    total: int | None = 0
    for role in ("test",) if stage.task.answers else ("train", "validation"):
        for number, path in enumerate(getattr(data, role)):
            count = _file(stage, (f"instructions.{role}",), ("instructions", role, number), path, data, role != "test")
            if role == "train":
                total = None if count is None or total is None else total + count
    return total


def _names(stage: StageContext, data: InstructionData) -> bool:
    """Whether the recipe's names of keys and roles are names of something, each of one thing."""
    good = True
    for section, written, known in (("columns", data.columns, KEYS), ("roles", data.roles, ROLES)):
        for name in written:
            if name not in known:
                near = nearest_name(name, known)
                hint = f"did you mean {near}? " if near else ""
                what = f"{name} is not one of the format's names; {hint}there are {', '.join(known)}"
                stage.error(("instructions", section, name), what, "known names", name, known)
                good = False
        for name in {value for value in written.values() if list(written.values()).count(value) > 1}:
            both = " and ".join(key for key, value in written.items() if value == name)
            what = f"names {name} twice, for {both}; give each a name of its own"
            stage.error(("instructions", section), what, "one name each", name)
            good = False
    return good


def _cache(stage: StageContext, data: InstructionData) -> None:
    if data.cache is None or is_in_run(data.cache):
        return
    path = Path(data.cache)
    # the first part of it that is there
    there = next((one for one in (path, *path.parents) if _missing(one) is None), path)
    try:
        is_folder = stat.S_ISDIR(there.stat().st_mode)
    except OSError:
        is_folder = False
    if not is_folder:
        what = f"{there}: is not a folder; give one for the tokenised rows, or leave it out"
        stage.error(("instructions", "cache"), what, "cache is a folder", data.cache)


def _missing(path: Path) -> str | None:
    """Why nothing is at `path`."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return None


def _file(
    stage: StageContext, rule: tuple[str], keys: tuple[str | int, ...], path: str, data: InstructionData, learns: bool
) -> int | None:
    """Rows in a file; None where it cannot be read to its end."""
    missing = _missing(Path(path))
    if missing is not None:
        what = f"{path}: {missing}; put the rows there, or set {rule[0]} to where they are"
        stage.error(keys, what, "data exists", path)
        return None
    count = 0
    wrong: dict[str, list[str]] = {}
    try:
        for where, row in itertools.islice(rows(Path(path)), MAX_ROWS + 1):
            count += 1
            try:
                found = record(row, where, data, learns=learns)
                if data.template != "chat":
                    pieces(found, data.template, "")
            except RecordError as error:
                wrong.setdefault(str(error), []).append(where)
    except DataError as error:
        stage.error(keys, str(error), "data exists", path)
        return None
    _tell(stage, path, wrong)
    if not count:
        stage.error(keys, f"{path}: contains no rows; add rows", "rows exist", 0)
    return count if count <= MAX_ROWS else None
