"""The real engine on the real scheduler: three stages over two nodes, and a stage resumed by hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.dev_cluster import Cluster
from tests.support.processes import hpclm
from tests.support.samples import changed, write
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def make(folder: Path, *changes: tuple[str, Any]) -> None:
    """The recipe tests' sample without its container, with text enough to train on."""
    write(folder, changed(("container", None), ("text.document", "line"), *changes))
    (folder / "text" / "b.txt").write_text("".join(f"line {n} of a text that repeats itself\n" for n in range(400)))


def status() -> dict[str, Any]:
    (run,) = json.loads(hpclm("status", "--json"))["runs"]
    found: dict[str, Any] = run
    return found


def test_pretrain_ptune_and_evaluate_over_two_nodes(folder: Path) -> None:
    make(folder)
    hpclm("submit", "recipe.yaml", "--site", "slurm", "--nodes", "2", "--devices-per-node", "1", "--wait")
    run = status()
    assert run["state"] == "completed"
    assert [stage["step"] for stage in run["stages"][:2]] == [10, 10]
    ranks = [json.loads(path.read_text()) for path in Path(run["path"]).glob("stages/*/attempts/*/ranks/*.json")]
    assert sorted((one["rank"], one["node"]) for one in ranks) == [(0, "node0")] * 3 + [(1, "node1")] * 3
    hpclm("collect", "--pred-file", "test-results.txt")
    lines = Path("test-results.txt").read_text().splitlines()
    assert len(lines) == 16
    assert all(line.startswith("a b c =") for line in lines)
    assert Path(run["path"], "results", "checkpoints", "ptune", "best").is_dir()


def test_a_killed_rank_fails_a_run_without_restarts_and_resume_makes_it_good(folder: Path) -> None:
    make(folder, ("stages.0.trainer", {"max_steps": 60, "val_check_interval": 10}), ("recovery", {"max_restarts": 0}))
    hpclm("submit", "recipe.yaml", "--site", "slurm", "--nodes", "2", "--devices-per-node", "1")
    root = Path(status()["path"])

    def saved() -> bool:
        assert status()["state"] in ("pending", "running"), status()
        return (root / "stages/pretrain/checkpoints/latest.json").exists()

    wait_until("a checkpoint", saved, seen=status)
    record = json.loads(next(root.glob("stages/pretrain/attempts/001-00/ranks/00001.json")).read_text())
    os.kill(record["pid"], signal.SIGKILL)
    wait_until("the run's end", lambda: status()["state"] not in ("running", "pending"), seen=status)
    run = status()
    assert run["state"] == "failed"
    assert "rank 1 on node1 vanished without an error message" in run["reason"]

    def states() -> list[str]:
        return [stage["state"] for stage in status()["stages"]]

    wait_until("all stages' end", lambda: "pending" not in states(), seen=states)
    assert states() == ["failed", "skipped", "skipped"]
    hpclm("resume", "--wait")
    assert status()["state"] == "completed"
    steps = [json.loads(line)["step"] for line in (root / "stages/pretrain/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 60
