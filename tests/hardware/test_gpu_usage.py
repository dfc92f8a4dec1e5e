"""Memory, utilisation and power of a node's GPUs go beside the metrics, and a node without any is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from hpclm.core.layout import StagePaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import to_dict
from hpclm.core.sealed import write_sealed
from hpclm.core.spec import ProgramSpec, ProgramStageSpec
from hpclm.tracking.follower import Follower
from hpclm.worker.tracking import measured
from tests.support.fake_nvml import call, machine
from tests.support.processes import LIMIT_S
from tests.support.waiting import wait_until


def rows(folder: Path, node: int = 0) -> list[dict[str, Any]]:
    path = StagePaths(folder).device_metrics(node)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(folder: Path, what: str, *, node: int = 0) -> subprocess.CompletedProcess[str]:
    """Until its standard input ends, which is at once."""
    argv = [sys.executable, "-m", "hpclm.nodes.gpu_usage", str(folder), str(node), "30"]
    return subprocess.run(
        argv, env=machine(what), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_every_gpu_of_the_node_with_the_step_that_was_reached(tmp_path: Path) -> None:
    StagePaths(tmp_path).progress.write_text('{"step": 12}')
    done = run(tmp_path, "h100,x2,busy", node=3)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (row,) = rows(tmp_path, 3)
    assert row.pop("time") > 0
    assert row == {
        "kind": "device",
        "step": 12,
        "node3/gpu0/memory_gib": 0.0,
        "node3/gpu0/utilization_percent": 50.0,
        "node3/gpu0/power_w": 400.5,
        "node3/gpu1/memory_gib": 79.0,
        "node3/gpu1/utilization_percent": 51.0,
        "node3/gpu1/power_w": 401.5,
    }


def test_a_lost_gpu_is_left_out(tmp_path: Path) -> None:
    run(tmp_path, "h100,x2,lost")
    (row,) = rows(tmp_path)
    assert {name.split("/")[1] for name in row if "/" in name} == {"gpu0"}


@pytest.mark.parametrize("what", ["no-driver", "mismatch", "silent", "x0"])
def test_what_is_not_known_is_no_row_and_no_word(tmp_path: Path, what: str) -> None:
    done = run(tmp_path, what)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert rows(tmp_path) == []


def test_it_lives_as_long_as_its_rank_and_trackers_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPCLM_FAKE_NVML", "LD_LIBRARY_PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, machine("h100,x1")[name])
    with measured(tmp_path, 0, active=True):
        pass
    (row,) = wait_until("the last row", lambda: rows(tmp_path))
    with measured(tmp_path, 0, active=False):
        pass
    assert rows(tmp_path) == [row]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, "loss": 2.0, "time": 1.0}) + "\n")
    sink = _Seen()
    follower = Follower(StagePaths(tmp_path), lambda: sink)
    assert follower.pass_on() == 2
    assert [one["kind"] for one in sink.rows] == ["train", "device"]
    assert follower.pass_on() == 0


@pytest.mark.parametrize(("device", "local_rank", "expected"), [("gpu", 0, 1), ("gpu", 1, 0), ("cpu", 0, 0)])
def test_the_first_rank_of_a_node_starts_it(
    tmp_path: Path, device: Literal["cpu", "gpu"], local_rank: int, expected: int
) -> None:
    stage = StagePaths(tmp_path / "run" / "stages" / "s")
    stage.root.mkdir(parents=True)
    program = ProgramSpec([sys.executable, "-c", "print('done')"])
    split = ParallelSpec(1, 1, 2, world_size=2, nodes=1, devices_per_node=2)
    spec = ProgramStageSpec("run", "s", str(stage.root), device, split, program, runner="tests.support.no_work:run")
    write_sealed(stage.spec, to_dict(spec))
    place = {"RANK": str(local_rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(local_rank), "NODE_RANK": "0"}
    environment = machine("h100,x1") | {f"HPCLM_{name}": value for name, value in place.items()}
    done = call(environment, "-m", "hpclm.worker", str(stage.root), "1")
    assert done.returncode == 0, done.stderr
    assert len(rows(stage.root)) == expected


class _Seen:
    note = ""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def add(self, row: Any) -> None:
        self.rows.append(row)

    def flush(self) -> None: ...

    def close(self) -> None: ...
