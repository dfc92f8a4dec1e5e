"""Collecting: complete or refused, in the test file's order, in a folder that stands by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.errors import IncompleteError, RunNotFoundError
from hpclm.core.files import append_line, read_object, write_json
from hpclm.runs import submit as submitting
from hpclm.runs.collect import collect
from hpclm.runs.predictions import line
from hpclm.runs.record import Run
from tests.support.checkpoints import write_shard
from tests.support.harness import CHAIN, prepared
from tests.support.sites import LOCAL


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose three stages are complete, as its ranks would have left it."""
    ready = prepared(tmp_path / "runs", CHAIN, LOCAL)
    ready.paths.root.parent.mkdir()
    run = submitting.write(ready)
    for stage in CHAIN:
        paths = run.paths.stage(stage.name)
        append_line(paths.metrics, {"kind": "train", "step": 1, "loss": 1.5})
        result: dict[str, Any] = {"task": stage.task, "steps": 20, "loss": 1.5, "val_loss": 1.25, "seconds": 3.5}
        if stage.task == "evaluate":
            result |= {"examples": 4, "scores": {"first": {"exact_match": 0.75, "examples": 4}}}
        else:
            for step in (10, 20):
                paths.checkpoint(step).mkdir(parents=True)
                write_shard(paths.checkpoint(step), b"%d" % step)
            write_json(paths.best, {"checkpoint": "step-00000010", "step": 10, "val_loss": 1.25})
            write_json(paths.latest, {"checkpoint": "step-00000020", "step": 20})
            write_json(paths.checkpoints / "model.json", {"num_layers": 2})
        write_json(paths.result, result)
    for rank, indices in enumerate(((0, 2), (1, 3))):
        for index in indices:
            predict(run, rank, index)
    return run


def predict(run: Run, rank: int, index: Any, **changes: Any) -> None:
    paths = run.paths.stage("evaluate")
    paths.predictions.mkdir(exist_ok=True)
    row = {"index": index, "taskname": "first", "prompt": f" q{index} =", "prediction": f" a{index}\nb ", "answer": "x"}
    append_line(paths.prediction(rank), {**row, **changes})


def test_one_line_an_example_in_the_test_files_order(run: Run, tmp_path: Path) -> None:
    collected = collect(run, pred_file=tmp_path / "deep" / "test-results.txt")
    expected = ["q0 = a0 b", "q1 = a1 b", "q2 = a2 b", "q3 = a3 b"]
    assert (tmp_path / "deep" / "test-results.txt").read_text().splitlines() == expected
    assert (collected.folder / "test-results.txt").read_text().splitlines() == expected
    rows = [json.loads(text) for text in (collected.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    beside = tmp_path / "deep" / "test-results.txt.jsonl"
    assert [json.loads(text) for text in beside.read_text().splitlines()] == rows


def test_rows_that_the_evaluation_left_out_are_no_holes(run: Run) -> None:
    """NeMo's semantics leave out what does not fit; the result says which."""
    paths = run.paths.stage("evaluate")
    paths.prediction(1).unlink()
    predict(run, 1, 3)
    paths.result.write_text(json.dumps(json.loads(paths.result.read_text()) | {"examples": 3, "left_out": [1]}))
    rows = (collect(run).folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(text)["index"] for text in rows] == [0, 2, 3]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_no_prediction_takes_two_lines(end: str) -> None:
    assert line({"prompt": f"{end}a{end}b", "prediction": f" c{end}"}) == "a b c"


def test_an_empty_prediction_still_has_its_line(run: Run, tmp_path: Path) -> None:
    shutil.rmtree(run.paths.stage("evaluate").predictions)
    for index in range(4):
        predict(run, 0, index, prompt="", prediction="")
    collect(run, pred_file=tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "\n\n\n\n"


def test_the_folder_has_everything_and_survives_the_run(run: Run, tmp_path: Path) -> None:
    collected = collect(run, out=tmp_path / "gathered")
    shutil.rmtree(run.paths.root)
    folder = collected.folder
    for name in (
        "recipe.yaml",
        "resolved.json",
        "plan.json",
        "environment.json",
        "run.json",
        "summary.md",
        "scores.json",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "checkpoints/ptune/best/shard-00000.safetensors").read_bytes() == b"10"
    assert (folder / "checkpoints/ptune/last/shard-00000.safetensors").read_bytes() == b"20"
    assert (folder / "checkpoints/ptune/model.json").exists()
    assert (folder / "stages/ptune/metrics.jsonl").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scores"] == {"first": {"exact_match": 0.75, "examples": 4}}
    text = (folder / "summary.md").read_text()
    assert "| first | 4 | 0.75 |" in text
    assert "`checkpoints/ptune/best`: step 10, val loss 1.25" in text


def test_a_missing_prediction_is_named(run: Run, tmp_path: Path) -> None:
    run.paths.stage("evaluate").prediction(1).unlink()
    with pytest.raises(IncompleteError, match=r"2 of 4 predictions missing: example 1, 3"):
        collect(run, pred_file=tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()
    assert not run.paths.results.exists()


def test_a_double_prediction_is_named(run: Run) -> None:
    predict(run, 1, 2)
    with pytest.raises(IncompleteError, match=r"1 of 4 predictions duplicated: example 2"):
        collect(run)


def test_a_prediction_of_no_example_is_named(run: Run) -> None:
    predict(run, 1, 9)
    with pytest.raises(IncompleteError, match=r"1 of 4 predictions out of range: example 9"):
        collect(run)


def test_a_torn_prediction_is_named_with_its_line(run: Run) -> None:
    with run.paths.stage("evaluate").prediction(1).open("a") as stream:
        stream.write('{"index": 3, "pro')
    with pytest.raises(IncompleteError, match=r"rank-00001.jsonl:3: not a line of JSON"):
        collect(run)


def test_an_evaluation_that_is_not_over_is_refused(run: Run) -> None:
    run.paths.stage("evaluate").result.unlink()
    with pytest.raises(IncompleteError, match=r"is not complete: stage evaluate is"):
        collect(run)


def test_test_data_that_changed_since_is_noticed(run: Run, tmp_path: Path) -> None:
    paths = run.paths.stage("evaluate")
    rows = tmp_path / "test.jsonl"
    rows.write_text('{"a": 1}\n' * 4)
    spec = read_object(paths.spec) or {}
    spec["data"]["test"] = [str(rows)]
    write_json(paths.spec, spec)
    collect(run)
    rows.write_text('{"a": 1}\n' * 5)
    with pytest.raises(IncompleteError, match=r"4 examples were evaluated, .*test.jsonl has 5"):
        collect(run)


def test_a_failed_collect_leaves_the_earlier_one(run: Run) -> None:
    collected = collect(run)
    run.paths.stage("evaluate").prediction(0).unlink()
    with pytest.raises(IncompleteError):
        collect(run)
    assert (collected.folder / "test-results.txt").exists()


def test_a_stage_that_is_no_evaluation_is_refused(run: Run) -> None:
    with pytest.raises(RunNotFoundError, match=r"no evaluate stage 'ptune'; it has evaluate"):
        collect(run, stage="ptune")


@pytest.mark.parametrize("stages", [7, [7], [{"name": {}}], [{}], {"name": "evaluate"}])
def test_a_damaged_plan_does_not_keep_the_results_back(run: Run, tmp_path: Path, stages: object) -> None:
    run.paths.plan.write_text(json.dumps({"stages": stages}))
    collect(run, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["parallel"] == {}
