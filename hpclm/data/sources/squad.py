"""SQuAD (Rajpurkar et al. 2016) as prompt-learning rows.

Files, rows and order are those of NeMo's scripts/dataset_processing/nlp/squad/prompt_learning_squad_preprocessing.py:
train from the training file, validation and test both from the development file. Unanswerable questions (v2.0) are left
out of train and validation; the test has them, and their answers in its ground truth are an empty list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.data.sources.writing import write_rows

TASKNAME = "squad"
VERSIONS = ("v1.1", "v2.0")


def squad(source: Path, out: Path, *, escaped: bool = False) -> list[Path]:
    """Write squad_train.jsonl, squad_val.jsonl (first answers), squad_test.jsonl (no answers) and
    squad_test_ground_truth.jsonl (all answers of each question) into `out`; returns them.

    Args:
        source: a folder with train-v1.1.json and dev-v1.1.json, or those of v2.0.
        escaped: see `row_line`.

    Raises DataError where the files are missing or have another format.
    """
    train, dev = _files(source)
    trained = [_row(*one[:2], one[2][0]) for one in _questions(train) if one[2]]
    asked = list(_questions(dev))
    parts = {
        "train": trained,
        "val": [_row(context, question, answers[0]) for context, question, answers in asked if answers],
        "test": [_row(context, question) for context, question, _ in asked],
        "test_ground_truth": [_row(context, question, answers) for context, question, answers in asked],
    }
    return [write_rows(out / f"squad_{name}.jsonl", rows, escaped=escaped) for name, rows in parts.items()]


def _files(source: Path) -> tuple[Path, Path]:
    for version in VERSIONS:
        train, dev = (source / f"{part}-{version}.json" for part in ("train", "dev"))
        if train.is_file() and dev.is_file():
            return train, dev
    raise DataError(
        f"{source}: train-v1.1.json and dev-v1.1.json do not exist, nor the files of v2.0; "
        "give the folder that contains them"
    )


def _questions(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Context, question and answers of every question."""
    try:
        with open_file(path) as stream:
            topics = json.load(stream)["data"]
        for topic in topics:
            for paragraph in topic["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = [str(answer["text"]) for answer in asked["answers"]]
                    yield str(paragraph["context"]), str(asked["question"]), answers
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a SQuAD file ({type(error).__name__}: {error}); use it as published") from error


def _row(context: str, question: str, answer: str | list[str] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"taskname": TASKNAME, "context": context, "question": question}
    return row if answer is None else row | {"answer": answer}
