"""The assistant benchmark (intent and slots) as prompt-learning rows, and as text to pre-train a small model on.

Rows, split and order are those of NeMo's scripts/dataset_processing/nlp/intent_and_slot (assistant_utils.py and
prompt_learning_assistant_preprocessing.py) at the same seed. Labels differ where those lose or merge slots: a slot at
the very beginning of an utterance is missing there, because the quotation mark of the CSV field hides its bracket (406
of the 11,036 rows), and two neighbours of one name become one, "time(four am ten pm)" (18 rows). Here the fields are
read as CSV and every slot is kept, unless `labels` is `nemo`.
"""

from __future__ import annotations

import csv
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpclm.core.errors import DataError
from hpclm.core.files import open_text
from hpclm.data.sources.writing import write_file, write_rows

FOLD = Path("CrossValidation/autoGeneFromRealAnno/autoGene_2018_03_22-13_01_25_169/CrossValidation/KFold_1")
TASKNAME = "intent_and_slot"
_SLOT = re.compile(r"\[\s*(?P<name>[^\s:\]]+)\s*:\s*(?P<value>[^\]]*?)\s*\]")
_COLUMNS = ("answer_annotation", "answer_from_anno")
_TEXT_PARTS = 20


@dataclass(frozen=True)
class Utterance:
    """One row of the source: what was said, the same with its slots in brackets, and the intent."""

    text: str
    annotated: str
    intent: str

    @property
    def label(self) -> str:
        return self._labelled([f"{slot['name']}({slot['value']})" for slot in _SLOT.finditer(self.annotated)])

    @property
    def nemo_label(self) -> str:
        """With the slots that NeMo's scripts find: word by word in the quoted field, neighbours of one name as one."""
        names: list[str | None] = []
        name = None
        for word in f'"{self.annotated}"'.split():
            if word.startswith("["):
                name = word[1:]
            elif not word.startswith(":"):
                names.append(name)
                name = None if word.endswith("]") else name
        words = self.text.split()
        pairs = list(zip(words, names if len(words) == len(names) else names[1:], strict=False))
        groups = itertools.groupby(pairs, key=lambda pair: pair[1])
        found = [f"{name}({' '.join(word for word, _ in group)})" for name, group in groups if name is not None]
        return self._labelled(found)

    def _labelled(self, slots: list[str]) -> str:
        return f"\nIntent: {self.intent}\nSlots: {', '.join(slots) or 'None'}"


def assistant(
    source: Path, out: Path, seed: int = 42, *, labels: Literal["all", "nemo"] = "all", escaped: bool = False
) -> list[Path]:
    """Write the data set at `source` (its original layout) as files in `out`; returns what was written.

    assistant_train.jsonl and assistant_val.jsonl contain {"taskname", "utterance", "label"}, assistant_test.jsonl the
    same without labels and assistant_test_ground_truth.jsonl with them. text/ contains only the training utterances,
    plain, annotated and labelled, for a base model that has seen all three, so that
    prompts select which one to produce.

    Args:
        labels: `nemo`: with the slots that NeMo's scripts lose and merge.
        escaped: see `row_line`.

    Raises DataError where the source has another layout, or `out` cannot be written.
    """
    fold = _fold(source)
    train = list(_read(fold / "trainset"))
    test = list(_read(fold / "testset" / "csv"))
    shuffler = random.Random(seed)
    shuffler.shuffle(train)
    # NeMo cuts at half of the unshuffled count, which is the same
    shuffler.shuffle(test)
    half = len(test) // 2
    parts = {"train": train, "val": test[:half], "test_ground_truth": test[half:]}
    rows = {name: [_row(one, labels) for one in utterances] for name, utterances in parts.items()}
    rows["test"] = [{"taskname": TASKNAME, "utterance": utterance.text} for utterance in test[half:]]
    written = [write_rows(out / f"assistant_{name}.jsonl", made, escaped=escaped) for name, made in rows.items()]
    return [*written, *_write_text(out / "text", train, shuffler)]


def _fold(source: Path) -> Path:
    for folder in (source / FOLD, source):
        if (folder / "trainset").is_dir() and (folder / "testset" / "csv").is_dir():
            return folder
    raise DataError(
        f"{source}: not the assistant data set: neither {FOLD}/trainset and …/testset/csv nor trainset and testset/csv "
        "exist; give the folder of NLU-Evaluation-Data"
    )


def _read(folder: Path) -> Iterator[Utterance]:
    """Every row of the folder's files, in the order of the intents' names."""
    files = sorted(folder.glob("*.csv"), key=lambda path: path.stem)
    if not files:
        raise DataError(f"{folder}: contains no .csv file")
    for path in files:
        try:
            yield from _read_file(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 at byte {error.start}; use the file as published") from error


def _read_file(path: Path) -> Iterator[Utterance]:
    with open_text(path, newline="") as stream:
        # strict: an unclosed quotation mark must not swallow the rows below it
        reader = csv.DictReader(stream, delimiter=";", strict=True)
        line = 1
        try:
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{path}:1: no column {' and '.join(missing)}")
            line = reader.line_num + 1
            for row in reader:
                if any(not row[column] for column in _COLUMNS):
                    raise DataError(f"{path}:{line}: a row without {' or '.join(_COLUMNS)}")
                yield Utterance(row["answer_from_anno"], row["answer_annotation"], path.stem)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not a CSV row ({error}); fix its quotation marks") from error


def _row(utterance: Utterance, labels: str) -> dict[str, str]:
    label = utterance.nemo_label if labels == "nemo" else utterance.label
    return {"taskname": TASKNAME, "utterance": utterance.text, "label": label}


def _write_text(folder: Path, utterances: list[Utterance], shuffler: random.Random) -> list[Path]:
    """Documents separated by blank lines (`document: paragraph`), in a few files."""
    documents = []
    for utterance in utterances:
        documents += [
            f"Say :\n{utterance.text}\n",
            f"Annotate :\n{utterance.text}\n{utterance.annotated}\n",
            f"Label :\n{utterance.text}{utterance.label}\n",
        ]
    shuffler.shuffle(documents)
    return [
        write_file(folder / f"part-{part:02d}.txt", "\n".join(documents[part::_TEXT_PARTS]))
        for part in range(_TEXT_PARTS)
    ]
