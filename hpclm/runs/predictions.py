"""Puts the data-parallel ranks' predictions back into the order of the test rows, and refuses missing ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpclm.core.errors import IncompleteError
from hpclm.core.files import open_text, read_object
from hpclm.core.layout import StagePaths
from hpclm.core.stage_result import result_of
from hpclm.data.prediction_rows import AT_LIMIT, TOKENS

_SHOWN = 10


def merged(paths: StagePaths) -> list[dict[str, Any]]:
    """One row per test example, in the order of the test files; without those that the
    evaluation left out (NeMo's semantics).

    Raises IncompleteError unless the evaluation is complete and the index of every other test row occurs exactly once.
    """
    result = result_of(paths)
    if result is None:
        raise IncompleteError(
            f"stage {paths.name}: the evaluation is not complete (no {paths.result}); see `hpclm status`"
        )
    answered, without = result.get("examples"), result.get("left_out") or []
    if type(answered) is not int or not isinstance(without, list) or not all(type(one) is int for one in without):
        raise IncompleteError(f"{paths.result}: does not contain the number of examples")
    expected = answered + len(without)
    left_out = {index for index in without if 0 <= index < expected}
    _compare_with_test_files(paths, expected)
    rows: dict[int, dict[str, Any]] = {}
    double: set[int] = set()
    for file in sorted(paths.predictions.glob("rank-*.jsonl")):
        for number, row in _rows(file):
            index = row.get("index")
            if (
                not isinstance(index, int)
                or not isinstance(row.get("prompt"), str)
                or not isinstance(row.get("prediction"), str)
            ):
                raise IncompleteError(f"{file}:{number}: not a prediction (index, prompt, prediction)")
            if index in rows:
                double.add(index)
            rows[index] = row
    present = {index for index in rows if 0 <= index < expected}
    missing = expected - len(left_out | present)
    first_missing = itertools.islice(
        (index for index in range(expected) if index not in left_out and index not in rows), _SHOWN + 1
    )
    problems = []
    for what, count, indices in (
        ("missing", missing, first_missing),
        ("duplicated", len(double), double),
        ("out of range", len(rows) - len(present), rows.keys() - present),
    ):
        if count:
            problems.append(f"{count} of {expected} predictions {what}: example {_listed(indices)}")
    if problems:
        raise IncompleteError(f"stage {paths.name}: " + "; ".join(problems) + f" (in {paths.predictions})")
    wanted = sorted(present - left_out)
    return [{key: value for key, value in rows[index].items() if key not in (TOKENS, AT_LIMIT)} for index in wanted]


def line(row: dict[str, Any]) -> str:
    """NeMo's line of a prediction file: prompt and what was generated, stripped, on one line.

    Every character that some reader treats as a line end counts as a newline, so that
    there is always one line per example.
    """
    return " ".join((row["prompt"] + row["prediction"]).strip().splitlines())


def _rows(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with open_text(file) as stream:
        for number, text in enumerate(stream, 1):
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise IncompleteError(f"{file}:{number}: not a line of JSON; the evaluation was interrupted")
            yield number, row


def _compare_with_test_files(paths: StagePaths, expected: int) -> None:
    """The evaluation's count compared with the test files, if these can still be read."""
    spec = read_object(paths.spec) or {}
    files = [Path(name) for name in (spec.get("data") or {}).get("test", [])]
    if any(file.suffix != ".jsonl" for file in files):
        return  # a line is a row in JSONL alone
    try:
        rows = sum(1 for file in files for text in file.read_text(encoding="utf-8").split("\n") if text.strip())
    except (OSError, UnicodeDecodeError):
        return
    if files and rows != expected:
        names = ", ".join(str(file) for file in files)
        raise IncompleteError(
            f"stage {paths.name}: {expected} examples were evaluated, {names} has {rows}; "
            "the test data has changed since: evaluate again"
        )


def _listed(indices: Iterable[int]) -> str:
    ordered = sorted(indices)
    return ", ".join(map(str, ordered[:_SHOWN])) + (", ..." if len(ordered) > _SHOWN else "")
