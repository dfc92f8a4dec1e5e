"""Data sets as NeMo's scripts make them, from small sources in the published form."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.data.sources.assistant import Utterance


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def squad_file(*questions: tuple[str, list[str]]) -> str:
    qas = [
        {"question": asked, "id": "x", "answers": [{"text": t, "answer_start": 0} for t in told]}
        for asked, told in questions
    ]
    return json.dumps({"version": "1.1", "data": [{"title": "T", "paragraphs": [{"context": "Ctx é", "qas": qas}]}]})


def test_squad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "train-v2.0.json").write_text(squad_file(("who?", ["he"]), ("never?", [])))
    (source / "dev-v2.0.json").write_text(squad_file(("when?", ["now", "right now"]), ("no?", [])))
    assert cli.run(["data", "prepare", "squad", str(source), str(out)]) == 0
    assert "squad_train.jsonl: 1 rows" in capsys.readouterr().out
    base = {"taskname": "squad", "context": "Ctx é"}
    assert rows(out / "squad_train.jsonl") == [base | {"question": "who?", "answer": "he"}]
    assert rows(out / "squad_val.jsonl") == [base | {"question": "when?", "answer": "now"}]
    assert rows(out / "squad_test.jsonl") == [base | {"question": "when?"}, base | {"question": "no?"}]
    assert rows(out / "squad_test_ground_truth.jsonl") == [
        base | {"question": "when?", "answer": ["now", "right now"]},
        base | {"question": "no?", "answer": []},
    ]


def test_the_phrase_bank_is_shuffled_and_cut_as_nemos_script_does(tmp_path: Path) -> None:
    source, out = tmp_path / "Sentences_AllAgree.txt", tmp_path / "out"
    labels = ["positive", "negative", "neutral"]
    lines = [f"Sales of {n} m£ rose to info@x.fi .@{labels[n % 3]}\n" for n in range(23)]
    source.write_text("".join(lines), encoding="ISO-8859-1")
    assert cli.run(["data", "prepare", "financial-phrasebank", str(tmp_path), str(out)]) == 0
    # as in NeMo's process_data: the module's generator, seeded with 1234
    random.seed(1234)
    random.shuffle(lines)
    expected = [
        {
            "taskname": "sentiment",
            "sentence": line.rpartition("@")[0].strip(),
            "label": " " + line.rpartition("@")[2].strip(),
        }
        for line in lines
    ]
    assert rows(out / "financial_phrase_bank_train.jsonl") == expected[:18]
    assert rows(out / "financial_phrase_bank_val.jsonl") == expected[18:20]
    assert rows(out / "financial_phrase_bank_test_ground_truth.jsonl") == expected[20:]
    assert [set(row) for row in rows(out / "financial_phrase_bank_test.jsonl")] == [{"taskname", "sentence"}] * 3
    assert "m£" in expected[0]["sentence"]


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("squad", {}, "give the folder that contains them"),
        ("squad", {"train-v1.1.json": "{}", "dev-v1.1.json": "{}"}, "not a SQuAD file"),
        ("squad", {"train-v1.1.json": "[", "dev-v1.1.json": "{}"}, "train-v1.1.json: not a SQuAD file"),
        ("financial-phrasebank", {}, "Sentences_AllAgree.txt: cannot be read"),
        (
            "financial-phrasebank",
            {"Sentences_AllAgree.txt": "a@positive\nb\n"},
            "Sentences_AllAgree.txt:2: not a sentence",
        ),
        ("assistant", {}, "not the assistant data set"),
    ],
)
def test_a_source_of_another_form_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, files: dict[str, str], words: str
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for file, text in files.items():
        (source / file).write_text(text)
    assert cli.run(["data", "prepare", name, str(source), str(out)]) != 0
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_unanswerable_questions_stay_in_the_test_and_its_truth(tmp_path: Path) -> None:
    """As NeMo's script keeps them; SQuAD v2.0's right answer is then none."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for part in ("train", "dev"):
        (source / f"{part}-v2.0.json").write_text(squad_file(("when?", ["now"]), ("no?", [])))
    assert cli.run(["data", "prepare", "squad", str(source), str(out), "--ascii"]) == 0
    assert [row["question"] for row in rows(out / "squad_val.jsonl")] == ["when?"]
    assert [row["question"] for row in rows(out / "squad_test.jsonl")] == ["when?", "no?"]
    assert [row["answer"] for row in rows(out / "squad_test_ground_truth.jsonl")] == [["now"], []]
    assert "Ctx \\u00e9" in (out / "squad_test.jsonl").read_text()


@pytest.mark.parametrize("kept", ["train", "dev"])
def test_a_source_without_rows_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for part in ("train", "dev"):
        (source / f"{part}-v1.1.json").write_text(squad_file(*([("when?", ["now"])] if part == kept else [])))
    assert cli.run(["data", "prepare", "squad", str(source), str(tmp_path / "out")]) != 0
    assert "would be empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("annotated", "text", "slots"),
    [
        # a bracket at the very beginning is hidden by the quotation mark of the field
        ("[date : tomorrow] at [time : four]", "tomorrow at four", "time(four)"),
        ("at [time : four am] [time : ten pm]", "at four am ten pm", "time(four am ten pm)"),
        ("wake me [date : on friday] please", "wake me on friday please", "date(on friday)"),
        ("what is up", "what is up", "None"),
    ],
)
def test_slots_as_nemos_script_finds_them(annotated: str, text: str, slots: str) -> None:
    assert Utterance(text, annotated, "intent").nemo_label == f"\nIntent: intent\nSlots: {slots}"
