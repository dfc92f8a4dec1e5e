"""Prediction and ground-truth files, and how their lines are matched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import DataError
from hpclm.core.files import open_text

_ANSWERS = ("answer", "answers", "label", "output", "truth")
_SHOWN = 5

Paired = dict[str, tuple[list[str], list[list[str]]]]


@dataclass(frozen=True)
class _Row:
    """`key`: what it is matched by, an id or the index in the file."""

    key: str
    task: str | None
    texts: list[str]


def paired(predictions: Path, truth: Path, split: str | None = None, *, answers_only: bool = False) -> Paired:
    """Predictions and right answers by task, in the truth's order.

    Args:
        predictions: JSONL with `prediction` (and `index` or `id`), or NeMo's file of prompt and answer on one line.
        truth: JSONL: objects with an answer (text or a list) and an `id` or `index` where they have one; or lists, or
            texts. Without ids, a row's id is its index, from 0.
        split: for NeMo's file, the text in front of the answer.
        answers_only: each line of the predictions is an answer, without a prompt.

    Raises DataError unless predictions and answers match one to one.
    """
    made, wanted = _predictions(predictions, "" if answers_only else split), _truth(truth)
    by_key = {row.key: row for row in made}
    keys = {row.key for row in wanted}
    problems = [
        _double(predictions, made),
        _double(truth, wanted),
        _listed(f"without a prediction in {predictions}", [row.key for row in wanted if row.key not in by_key]),
        _listed(f"without an answer in {truth}", [row.key for row in made if row.key not in keys]),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise DataError(
            f"{predictions} ({len(made)} rows) and {truth} ({len(wanted)} rows) do not match: " + "; ".join(found)
        )
    result: Paired = {}
    for row in wanted:
        other = by_key[row.key]
        if row.task and other.task and row.task != other.task:
            raise DataError(f"row {row.key} is of task {other.task} in {predictions} and of {row.task} in {truth}")
        texts = result.setdefault(row.task or other.task or "all", ([], []))
        texts[0].append(other.texts[0])
        texts[1].append(row.texts)
    return result


def _predictions(path: Path, split: str | None) -> list[_Row]:
    lines = _lines(path)
    if lines and lines[0].lstrip().startswith("{") and (parsed := _object(lines[0])) and "prediction" in parsed:
        rows = []
        for number, line in enumerate(lines, start=1):
            row = _object(line)
            if row is None or not isinstance(row.get("prediction"), str):
                raise DataError(
                    f"{path}:{number}: not an object with a prediction; the file is truncated or of another kind"
                )
            rows.append(_Row(_key(row, number), _task(row, f"{path}:{number}"), [row["prediction"]]))
        return rows
    if split is None:
        raise DataError(
            f"{path}: contains prompt and answer on one line; give the text in front of an answer, as in "
            '--split-string "Answer:", or --answers-only if there is no prompt'
        )
    without = [str(number) for number, line in enumerate(lines) if split not in line]
    if without:
        raise DataError(f"{path}: {_listed(f'without {split!r}', without)}; give another --split-string")
    answers = [line.rsplit(split, 1)[1] if split else line for line in lines]
    return [_Row(str(number), None, [answer.strip()]) for number, answer in enumerate(answers)]


def _truth(path: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(
                f"{path}:{number}: not valid JSON; a ground-truth file has one object, list or text per line"
            ) from None
        row = value if isinstance(value, dict) else {"answer": value}
        key = next((key for key in _ANSWERS if key in row), None)
        if key is None:
            raise DataError(f"{path}:{number}: no answer ({', '.join(_ANSWERS)}); is it the ground-truth file?")
        texts = row[key] if isinstance(row[key], list) else [row[key]]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}:{number}: {key} must be a text or a list of texts")
        # SQuAD v2.0: the right answer to an unanswerable question is none
        rows.append(_Row(_key(row, number), _task(row, f"{path}:{number}"), texts or [""]))
    return rows


def _key(row: dict[str, Any], number: int) -> str:
    value = row.get("id", row.get("index", number - 1))
    return str(value)


def _task(row: dict[str, Any], where: str) -> str | None:
    task = row.get("taskname")
    if task is not None and not isinstance(task, str):
        raise DataError(f"{where}: taskname must be text")
    return task


def _lines(path: Path) -> list[str]:
    try:
        with open_text(path, newline="") as stream:
            text = stream.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    lines = text.split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise DataError(f"{path}: is empty")
    return lines


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _double(path: Path, rows: list[_Row]) -> str:
    keys = [row.key for row in rows]
    seen: set[str] = set()
    double = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
    return _listed(f"duplicated in {path}", list(dict.fromkeys(double)))


def _listed(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
    return f"{len(keys)} {what} ({shown})" if keys else ""
