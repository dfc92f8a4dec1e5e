"""Predictions of an evaluation that was stopped: what counts as answered, and what is answered again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.core.layout import RunPaths, StagePaths
from hpclm.data.answered_rows import Writer, answered

ROWS = [0, 1, 2, 3, 4]


@pytest.fixture
def stage(tmp_path: Path) -> StagePaths:
    """Two replicas have written everything."""
    paths = RunPaths(tmp_path).stage("evaluate")
    assert answered(paths, "key", ROWS) == set()
    for rank, indices in ((0, (0, 1, 4)), (1, (2, 3))):
        with Writer(paths.prediction(rank), True) as writer:
            # line ends of Unicode that are no line ends of a file
            writer.add([{"index": index, "prediction": "a\u2028b\u0085c\rd"} for index in indices])
    return paths


def indices(paths: StagePaths) -> list[int]:
    files = sorted(paths.predictions.glob("rank-*.jsonl"))
    return [json.loads(line)["index"] for file in files for line in file.read_bytes().split(b"\n")[:-1]]


def test_whole_rows_are_kept(stage: StagePaths) -> None:
    before = stage.prediction(0).read_bytes()
    assert answered(stage, "key", ROWS) == {0, 1, 2, 3, 4}
    assert stage.prediction(0).read_bytes() == before
    assert indices(stage) == [0, 1, 4, 2, 3]


def test_a_row_with_a_torn_line_is_answered_again(stage: StagePaths) -> None:
    stage.prediction(1).write_bytes(stage.prediction(1).read_bytes()[:-3])
    assert answered(stage, "key", ROWS) == {0, 1, 2, 4}
    assert indices(stage) == [0, 1, 4, 2]


def test_a_row_that_is_there_twice_is_kept_once(stage: StagePaths) -> None:
    with Writer(stage.prediction(1), True) as writer:
        writer.add([{"index": 0, "prediction": "again"}, {"index": 99}])
    assert answered(stage, "key", ROWS) == {0, 1, 2, 3, 4}
    assert indices(stage) == [0, 1, 4, 2, 3]


def test_other_settings_begin_anew(stage: StagePaths) -> None:
    assert answered(stage, "another key", ROWS) == set()
    assert not stage.prediction(0).exists()
