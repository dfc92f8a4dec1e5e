"""The shipped data sets, and scores of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.core.errors import DataError
from hpclm.data.sources import assistant, demo
from hpclm.metrics import scores


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_the_demo_is_the_same_each_time_and_keeps_its_test_apart(tmp_path: Path) -> None:
    first, second = demo(tmp_path / "a"), demo(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    test = {row["words"] for row in rows(tmp_path / "a" / "test.jsonl")}
    assert len(test) == 100
    assert not test & {
        row["words"] for name in ("train", "validation") for row in rows(tmp_path / "a" / f"{name}.jsonl")
    }
    text = (tmp_path / "a" / "text" / "skills.txt").read_text()
    asked = [line.split(" = ") for line in text.splitlines()]
    assert not test & {question.split(": ")[-1] for question, _ in asked}
    # what the model alone learned to do without a word in front is wrong in both tasks
    assert all(question == answer for question, answer in asked if ":" not in question)
    assert {question.split(": ")[0] for question, _ in asked if ":" in question} == {"reverse", "rotate"}
    answers = {row["taskname"]: row["answer"] for row in rows(tmp_path / "a" / "test.jsonl")[:2]}
    a, b, c = rows(tmp_path / "a" / "test.jsonl")[0]["words"].split()
    assert answers == {"reverse": f"{c} {b} {a}", "rotate": f"{b} {c} {a}"}


def test_the_assistant_set_whole(shared_data: Path, tmp_path: Path) -> None:
    assistant(shared_data / "assistant", tmp_path)
    parts = {name: rows(tmp_path / f"assistant_{name}.jsonl") for name in ("train", "val", "test_ground_truth")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 9960, "val": 538, "test_ground_truth": 538}
    asked = [{key: row[key] for key in ("taskname", "utterance")} for row in parts["test_ground_truth"]]
    assert rows(tmp_path / "assistant_test.jsonl") == asked
    labels = {row["utterance"]: row["label"] for part in parts.values() for row in part}
    expected = "\nIntent: alarm_set\nSlots: time(seven am), event_name(work)"
    assert labels["set the alarm to seven am for work"] == expected
    assert all(row["taskname"] == "intent_and_slot" for row in parts["test_ground_truth"])
    said = {row["utterance"] for row in parts["train"]}
    text = "".join(path.read_text() for path in (tmp_path / "text").iterdir())
    assert not any(f"\n{row['utterance']}\n" in text for row in asked if row["utterance"] not in said)


def test_a_slot_at_the_very_beginning_is_kept(tmp_path: Path) -> None:
    header = "answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user\n"
    for folder in ("trainset", "testset/csv"):
        (tmp_path / folder).mkdir(parents=True)
        line = '1;contact;call;"[person : rahul; jr] contact";"rahul; jr contact";"x"\n'
        (tmp_path / folder / "call.csv").write_text(header + line * 2)
    assistant(tmp_path, tmp_path / "out")
    label = rows(tmp_path / "out" / "assistant_train.jsonl")[0]["label"]
    assert label == "\nIntent: call\nSlots: person(rahul; jr)"


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the assistant data set"):
        assistant(tmp_path, tmp_path / "out")
    for folder in ("trainset", "testset/csv"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "trainset" / "a.csv").write_text("x;y\n")
    with pytest.raises(DataError, match=r"a\.csv:1: no column answer_annotation"):
        assistant(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file/text/skills\.txt: cannot be written \(Not a directory\)"):
        demo(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / "test.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"test\.jsonl: cannot be written \(Is a directory\)"):
        demo(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train.jsonl").write_text("old")
    written = demo(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*written, tmp_path / "notes.txt"}
    assert len(rows(tmp_path / "train.jsonl")) == 1200
    assert len((tmp_path / "text" / "skills.txt").read_text().splitlines()) == 20_000


def row(prediction: str, answer: str | None, task: str = "t") -> dict[str, str | None]:
    return {"taskname": task, "prediction": prediction, "answer": answer}


def test_exact_match_is_counted_by_task_and_blanks_do_not_count() -> None:
    found = scores([row(" yes ", "yes"), row("no", "yes"), row("a  b", "a b", "u"), row("x", None, "v")])
    assert found == {
        "t": {"examples": 2, "exact_match": 0.5},
        "u": {"examples": 1, "exact_match": 1.0},
        "v": {"examples": 1},
    }


def test_intents_and_slots_are_scored_apart() -> None:
    answer = "\nIntent: alarm_set\nSlots: time(nine am), date(today)"
    found = scores([row("\nIntent: alarm_set\nSlots: time(nine am), place(here)", answer), row("nonsense", answer)])[
        "t"
    ]
    assert found["exact_match"] == 0.0
    assert found["intent_accuracy"] == 0.5
    # 1 of 2 predicted slots is right, of 4 expected ones
    assert found["slot_f1"] == pytest.approx(2 * 1 / (2 + 4))
