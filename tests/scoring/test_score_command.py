"""`hpclm evaluate score`: pairs by id, refuses what does not pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def scored(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run(["evaluate", "score", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["scores"]
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(["evaluate", "score", *arguments]) != 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_predictions_pair_by_index_whatever_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [{"index": n, "taskname": "squad", "prompt": "p", "prediction": f"answer {n}"} for n in (2, 0, 1)]
    told = [{"taskname": "squad", "answer": [f"answer {n}", "other"]} for n in range(3)]
    files = write(tmp_path / "p.jsonl", *made), write(tmp_path / "t.jsonl", *told)
    assert scored(capsys, *files) == {
        "squad": {"task": "squad", "examples": 3, "squad_exact_match": 1.0, "squad_f1": 1.0}
    }


def test_ids_of_the_truth_pair_too_and_tasks_are_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [{"id": name, "prediction": word} for name, word in (("b", "negative"), ("a", "positive"))]
    told = [{"id": "a", "taskname": "x", "label": " positive"}, {"id": "b", "taskname": "y", "label": "positive"}]
    files = write(tmp_path / "p.jsonl", *made), write(tmp_path / "t.jsonl", *told)
    found = scored(capsys, *files, "--task", "classification")
    assert (found["x"]["label_accuracy"], found["y"]["label_accuracy"]) == (1.0, 0.0)


def test_nemos_prediction_file_is_cut_at_the_last_split_string(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = "Context: x Answer: y Question: z Answer: Paris", "Context: x Question: z Answer: in London"
    files = write(tmp_path / "pred.txt", *made), write(tmp_path / "t.jsonl", ["Paris", "paris!"], ["London"])
    found = scored(capsys, *files, "--split-string", "Answer:")["all"]
    assert (found["task"], found["squad_exact_match"]) == ("squad", 0.5)
    assert "--split-string" in refused(capsys, *files)
    assert "2 without 'Reply:' (0, 1)" in refused(capsys, *files, "--split-string", "Reply:")


def test_intents_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = "\nIntent: play_music\nSlots: artist(adele)"
    told = write(tmp_path / "t.jsonl", {"label": answer})
    made = write(tmp_path / "p.txt", "u: Intent: play_music Slots: artist(adele)")
    for split in ("u:", "Intent:"):
        found = scored(capsys, made, told, "--split-string", split)["all"]
        assert (found["intent_accuracy"], found["slot_f1"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("made", "told", "words"),
    [
        ([{"index": 0, "prediction": "a"}], ["a", "b"], "1 without a prediction"),
        ([{"index": 0, "prediction": "a"}, {"index": 5, "prediction": "b"}], ["a"], "1 without an answer"),
        ([{"index": 0, "prediction": "a"}] * 2, ["a"], "1 duplicated"),
        ([{"index": 0, "prediction": "a"}, {"index": 1}], ["a", "b"], "p:2: not an object with a prediction"),
        ([{"index": 0, "prediction": "a"}], [{"question": "x"}], "t:1: no answer"),
        ([{"index": 0, "prediction": "a"}], ["{"], "t:1: not valid JSON"),
        ([{"index": 0, "prediction": "a"}], [[1]], "t:1: answer must be a text or a list of texts"),
        ([], ["a"], "p: is empty"),
    ],
)
def test_files_that_do_not_pair_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    made: list[Any],
    told: list[Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    truths = [row if row == "{" else json.dumps(row) for row in told]
    write(Path("p"), *made)
    write(Path("t"), *truths)
    assert words in refused(capsys, "p", "t")


def test_a_file_of_answers_alone_and_questions_without_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "pred.txt", "Paris", "", "somewhere"), write(tmp_path / "t.jsonl", ["paris"], [], [])
    found = scored(capsys, *files, "--answers-only", "--task", "squad")["all"]
    assert (found["squad_exact_match"], found["squad_f1"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert "--answers-only" in refused(capsys, *files)
