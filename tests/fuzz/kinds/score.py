"""`evaluate score PREDICTIONS TRUTH`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import odd_values, raw_bytes, trees

_TASKS = ("auto", "squad", "classification", "intent-slot")
_METRICS = ("exact_match", "f1", "accuracy", "bleu", "rouge1", "rougeL", "chrf", "x", "", "\x1b")


def make(rng: Random, folder: Path) -> list[str]:
    raw_bytes.special_files(folder)
    number = rng.choice((1, 3, 10))
    answers = rng.choice(
        (["yes", "no"], ["a b c", "the cat"], ["intent: play\nslots: a(b), c(d)", "intent: x\nslots: None"])
    )
    made: list[Any] = [
        {
            "id": str(i),
            "index": i,
            "taskname": "first",
            "prompt": f"q{i} =",
            "prediction": rng.choice(answers),
            "answer": "a",
        }
        for i in range(number)
    ]
    truth: list[Any] = [{"id": str(i), "taskname": "first", "answer": rng.choice(answers)} for i in range(number)]
    more: list[str] = []
    which = rng.random()
    if which < 0.25:
        text = "".join(f"q{i} Answer: {rng.choice(answers)}\n" for i in range(number))
        (folder / "predictions").write_bytes(
            raw_bytes.damaged(text.encode(), rng, 2) if rng.random() < 0.5 else text.encode()
        )
        more = rng.choice((["--split-string", "Answer:"], ["--answers-only"], ["--split-string", ""], []))
    else:
        (folder / "predictions").write_bytes(_lines(rng, made))
    (folder / "truth").write_bytes(_lines(rng, truth))
    if rng.random() < 0.06:
        raw_bytes.replace_special(folder / rng.choice(("predictions", "truth")), rng)
    if rng.random() < 0.4:
        more += ["--task", rng.choice(_TASKS)]
    if rng.random() < 0.3:
        more += ["--metric", rng.choice(_METRICS)]
    return ["evaluate", "score", "predictions", "truth", *more, *(["--json"] if rng.random() < 0.4 else [])]


def _lines(rng: Random, rows: list[Any]) -> bytes:
    if rng.random() < 0.3:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if rng.random() < 0.3:
        # every row in the same way, so that they still agree
        key, value = rng.choice((*rows[0], "answers", "label", "id")), odd_values.json_value(rng)
        rows = [{**row, key: value} for row in rows]
    else:
        rows = [*rows]
        at = rng.randrange(len(rows))
        rows[at] = trees.mutated(rows[at], rng, odd_values.json_value)
    data = raw_bytes.encoded("".join(trees.json_text(row) + "\n" for row in rows))
    return raw_bytes.damaged(data, rng, 3) if rng.random() < 0.2 else data
