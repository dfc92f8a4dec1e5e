"""`hpclm evaluate compare`: a model before and after its tuning, side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.cli.app import run as cli
from hpclm.core.errors import IncompleteError
from hpclm.core.sealed import write_sealed
from hpclm.runs.comparison import compare
from hpclm.runs.record import Run, read_run
from hpclm.runs.submit import write
from tests.support.harness import Stage, prepared
from tests.support.sites import LOCAL

STAGES = (Stage("before", "evaluate"), Stage("tune"), Stage("after", "evaluate", ("tune",)))
ANSWERS = {"before": ["no", "no", "yes"], "after": ["yes", "no", "yes"]}


def made(folder: Path, *evaluated: str) -> Run:
    """A run whose evaluations have answered three rows each."""
    (folder / "runs").mkdir()
    run = read_run(write(prepared(folder / "runs", STAGES, LOCAL)).paths.root)
    for name in evaluated:
        paths = run.paths.stage(name)
        paths.predictions.mkdir()
        rows = [
            {"index": index, "taskname": "t", "prompt": f"question {index}\n", "prediction": said, "answer": "yes"}
            for index, said in enumerate(ANSWERS[name])
        ]
        paths.prediction(0).write_text("".join(json.dumps(row) + "\n" for row in rows))
        exact = sum(said == "yes" for said in ANSWERS[name]) / 3
        scores = {"t": {"examples": 3, "exact_match": exact}}
        write_sealed(paths.result, {"examples": 3, "left_out": [], "scores": scores, "loss": 2.5})
    return run


def test_scores_and_answers_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, "before", "after")
    found = compare(run)
    assert found.scores["before"] == {"examples": 3, "exact_match": pytest.approx(1 / 3), "loss": 2.5}
    assert found.scores["after"]["exact_match"] == pytest.approx(2 / 3)
    # the row on which they differ comes first
    assert found.examples[0].said == {"before": "no", "after": "yes"}
    assert len(found.examples) == 3
    assert cli(["evaluate", "compare", run.record.run, "--runs-dir", str(tmp_path / "runs"), "--examples", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[2].split() == ["exact_match", "0.3333", "0.6667"]
    assert lines[5:] == ["prompt  question 0", "answer  yes", "before  no", "after   yes"]


def test_what_is_complete_is_shown(tmp_path: Path) -> None:
    assert list(compare(made(tmp_path, "after"), 0).scores) == ["after"]


def test_a_run_without_answers_says_so(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="before, after is not complete; see `hpclm status`"):
        compare(made(tmp_path))
