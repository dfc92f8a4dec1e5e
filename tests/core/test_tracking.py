"""Metrics for TensorBoard, beside the training: one curve, whatever happened to the run, and no harm from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from hpclm.core.layout import StagePaths
from hpclm.tracking.curve import Curve
from hpclm.tracking.follower import Follower
from hpclm.tracking.tensorboard import TRACKER
from hpclm.worker.tracking import tracked
from tests.support.processes import environment
from tests.support.waiting import wait_until

# of protobuf's C part in Python 3.12 and later
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CURVE = Curve("a-run", "pretrain")

RANK = """
import sys, time
from hpclm.worker.tracking import _started
print(_started(["hpclm.tracking", sys.argv[1], "tensorboard", "{}"]).pid, flush=True)
time.sleep(600)
"""


def rows(first: int, last: int, loss: float = 5.0) -> str:
    made = [
        {"kind": "train", "step": n, "loss": loss - n / 10, "lr": 1e-3, "time": 100.0 + n} for n in range(first, last)
    ]
    return "".join(json.dumps(row) + "\n" for row in made)


def curve(folder: Path, tag: str = "train/loss") -> list[tuple[int, float, float]]:
    read = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    read.Reload()
    return [(one.step, round(make_ndarray(one.tensor_proto).item(), 4), one.wall_time) for one in read.Tensors(tag)]


def test_rows_become_scalars_as_they_come(tmp_path: Path) -> None:
    metrics, folder = tmp_path / "metrics.jsonl", tmp_path / "events"
    follower = Follower(StagePaths(tmp_path), lambda: TRACKER.open(folder, CURVE))
    assert follower.pass_on() == 0
    metrics.write_text(rows(1, 4) + '{"kind": "train", "st')
    assert follower.pass_on() == 3
    with metrics.open("a") as file:
        file.write('ep": 4, "loss": 4.6, "lr": 0.001, "time": 104.0}\nnot a row\n')
    assert follower.pass_on() == 1
    assert curve(folder) == [(n, round(5 - n / 10, 4), 100.0 + n) for n in range(1, 5)]
    assert len(curve(folder, "train/lr")) == 4
    follower.close()


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    metrics, folder = tmp_path / "metrics.jsonl", tmp_path / "events"
    follower = Follower(StagePaths(tmp_path), lambda: TRACKER.open(folder, CURVE))
    metrics.write_text(rows(1, 9))
    follower.pass_on()
    (tmp_path / "new").write_text(rows(1, 5))
    (tmp_path / "new").replace(metrics)
    with metrics.open("a") as file:
        file.write(rows(5, 12, 6.0))
    follower.pass_on()
    follower.close()
    again = Follower(StagePaths(tmp_path), lambda: TRACKER.open(folder, CURVE))
    assert again.pass_on() == 11
    again.close()
    assert [step for step, _, _ in curve(folder)] == list(range(1, 12))
    assert curve(folder)[6][1] == pytest.approx(6.0 - 0.7)


def test_it_ends_with_its_rank_and_has_the_last_row(tmp_path: Path) -> None:
    with tracked(["tensorboard"], tmp_path):
        (tmp_path / "metrics.jsonl").write_text(rows(1, 6))
    assert len(curve(tmp_path / "tensorboard")) == 5


def test_a_rank_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", RANK, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment(), text=True) as rank:
        assert rank.stdout is not None
        follower = int(rank.stdout.readline())
        (tmp_path / "metrics.jsonl").write_text(rows(1, 3))
        rank.kill()
    wait_until("the follower to end", lambda: not Path(f"/proc/{follower}").exists() or _is_zombie(follower))
    assert len(curve(tmp_path / "tensorboard")) == 2


def _is_zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("trouble", ["folder", "package"])
def test_what_fails_does_not_end_the_rank(tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if trouble == "folder":
        (tmp_path / "tensorboard").write_text("a file")
    else:
        (tmp_path / "hidden" / "tensorboard").mkdir(parents=True)
        (tmp_path / "hidden" / "tensorboard" / "__init__.py").write_text("raise ImportError('no tensorboard here')")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hidden"), *sys.path]))
    done: list[Any] = []
    with tracked(["tensorboard"], tmp_path):
        (tmp_path / "metrics.jsonl").write_text(rows(1, 6))
        done.append(1)
    assert done
