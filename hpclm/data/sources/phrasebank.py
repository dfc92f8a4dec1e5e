"""The Financial PhraseBank (Malo et al. 2014) as prompt-learning rows.

Files, rows, split and order are those of NeMo's scripts/dataset_processing/nlp/financial_phrase_bank/
prompt_learning_financial_phrase_bank_preprocessing.py at the same seed.
"""

from __future__ import annotations

import random
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.core.files import open_text
from hpclm.data.sources.writing import write_rows

TASKNAME = "sentiment"
FILE = "Sentences_AllAgree.txt"
_TRAIN_SHARE = 0.8


def phrasebank(source: Path, out: Path, seed: int = 1234, *, escaped: bool = False) -> list[Path]:
    """Write financial_phrase_bank_train.jsonl, …_val.jsonl, …_test.jsonl (without labels) and
    …_test_ground_truth.jsonl into `out`; returns them. 80 % of the lines are for training; the rest is halved.

    Args:
        source: Sentences_AllAgree.txt, another file of the set, or the folder of the first.
        escaped: see `row_line`.

    Raises DataError where there is no such file or a line has another format.
    """
    path = source / FILE if source.is_dir() else source
    rows = [_row(line, f"{path}:{number}") for number, line in enumerate(_lines(path), start=1)]
    random.Random(seed).shuffle(rows)
    trained = int(len(rows) * _TRAIN_SHARE)
    validated = trained + (len(rows) - trained) // 2
    test = rows[validated:]
    parts = {
        "train": rows[:trained],
        "val": rows[trained:validated],
        "test": [{key: value for key, value in row.items() if key != "label"} for row in test],
        "test_ground_truth": test,
    }
    return [
        write_rows(out / f"financial_phrase_bank_{name}.jsonl", chosen, escaped=escaped)
        for name, chosen in parts.items()
    ]


def _lines(path: Path) -> list[str]:
    try:
        with open_text(path, encoding="ISO-8859-1") as stream:
            lines = stream.read().split("\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the folder of {FILE}, or one of the set's files"
        ) from error
    # the last line ends in a line break
    return lines[:-1] if lines[-1] == "" else lines


def _row(line: str, where: str) -> dict[str, str]:
    sentence, at, label = line.rpartition("@")
    if not at or label.strip() not in ("positive", "negative", "neutral"):
        raise DataError(f"{where}: not a sentence, an @ and positive, negative or neutral; use the file as published")
    return {"taskname": TASKNAME, "sentence": sentence.strip(), "label": f" {label.strip()}"}
