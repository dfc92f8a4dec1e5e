"""`hpclm doctor --nodes` on a real Slurm, with the driver's library replaced by a stand-in: faulty nodes are named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli.app import run
from hpclm.runs.submit import submit
from hpclm.schedulers.slurm import client
from launch.dev_cluster import Cluster
from tests.support.fake_nvml import pretend
from tests.support.harness import Stage, prepared, until_over, use_fake_worker
from tests.support.processes import LIMIT_S, start
from tests.support.sites import SLURM

pytestmark = pytest.mark.cluster


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Path:
    """Where runs would be, with a name that quoting must survive. Nodes that still clean up after a job would be said
    to be busy."""
    cluster.wait_until_idle()
    found = tmp_path / "it's $HOME; `runs`"
    found.mkdir()
    return found


def doctor(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> tuple[int, Any]:
    code = run(["doctor", "--site", "slurm", "--runs-dir", str(folder), "--json", *arguments])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else None


def said(found: Any, node: str, severity: str = "error") -> list[str]:
    return [row["found"] for row in found["findings"] if row["node"] == node and row["severity"] == severity]


def test_every_node_answers_and_nothing_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "h100")
    code, found = doctor(capsys, folder, "--nodes", "all")
    assert (code, found["state"]) == (0, "info"), found["findings"]
    assert sorted(found["nodes"]) == ["node0", "node1", "node2", "node3"]
    for facts in found["nodes"].values():
        assert [gpu["name"] for gpu in facts["gpu"]["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 8
        assert facts["folder"]["writable"]
        assert facts["folder"]["locks"]
    assert list(folder.iterdir()) == []
    assert cluster.command("squeue", "--noheader", "--states=running,pending", "--name=hpclm-doctor") == ""


def test_the_sick_node_and_the_one_that_is_down_are_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "a100,node1:lost,node2:x7")
    cluster.kill_node("node3")  # or its daemon may bring it back into service
    cluster.take_down("node3", "fan broken")
    try:
        code, found = doctor(capsys, folder, "--nodes", "all")
    finally:
        cluster.revive_node("node3")
        cluster.bring_back("node3")
    assert code == 4
    assert said(found, "node0") == []
    assert said(found, "node1") == ["GPU 1 has fallen off the bus; the node needs a reboot"]
    assert said(found, "node2") == ["8 GPUs are needed, 7 found"]
    assert said(found, "node3") == ["is down: fan broken"]


def test_a_list_asks_those_alone_and_a_strange_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "a100")
    _, found = doctor(capsys, folder, "--nodes", "node[1-2]")
    assert sorted(found["nodes"]) == ["node1", "node2"]
    assert run(["doctor", "--site", "slurm", "--runs-dir", str(folder), "--nodes", "node1,node9"]) == 4
    assert "the partition has no node9; it has node0, node1, node2, node3" in capsys.readouterr().err
    assert run(["doctor", "--site", "slurm", "--runs-dir", str(folder), "--nodes", "$(id)"]) == 4
    assert "give a number, `all`, or names" in capsys.readouterr().err


def test_nodes_that_do_not_answer_in_time_say_why_and_the_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "a100")
    script = tmp_path / "busy.sh"
    script.write_text("#!/bin/sh\nsleep 60\n")
    other = client.sbatch(["--nodelist=node0", "--exclusive", "--output=/dev/null", str(script)])
    try:
        code, found = doctor(capsys, folder, "--nodes", "node0", "--wait-s", "2")
    finally:
        client.scancel([other])
    assert code == 4
    (why,) = said(found, "node0")
    assert "did not respond within 2 s" in why
    assert "is pending" in why
    assert list(folder.iterdir()) == []
    assert cluster.command("squeue", "--noheader", "--states=running,pending", "--name=hpclm-doctor") == ""


def test_ctrl_c_cancels_the_job_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "a100")
    script = tmp_path / "busy.sh"
    script.write_text("#!/bin/sh\nsleep 60\n")
    other = client.sbatch(["--nodelist=node0", "--exclusive", "--output=/dev/null", str(script)])
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "hpclm.cli",
        "doctor",
        "--site",
        "slurm",
        "--runs-dir",
        folder,
        "--nodes",
        "node0",
    ]
    with start(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        try:
            assert asking.stderr is not None
            assert "checks node0" in asking.stderr.readline()
            assert "is pending" in asking.stderr.readline()
            asking.send_signal(signal.SIGINT)
            _, err = asking.communicate(timeout=LIMIT_S)
        finally:
            client.scancel([other])
    assert asking.returncode == 130
    assert err.endswith("doctor: stopped; its job was cancelled\n")
    assert list(folder.iterdir()) == []
    assert cluster.command("squeue", "--noheader", "--states=running,pending", "--name=hpclm-doctor") == ""


def test_a_run_goes_on_without_the_node_whose_gpu_is_lost(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, "a100,node0:lost")
    torch = tmp_path / "image" / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("cuda = '12.4'\n")
    monkeypatch.setenv("PYTHONPATH", str(torch.parent))
    stages = (Stage("train", device="gpu", nodes=2, devices_per_node=2),)
    use_fake_worker(monkeypatch, stages)
    made = submit(prepared(folder, stages, SLURM))
    status = until_over(made)
    assert status.state == "completed", status
    reports = {
        (path.parts[-3], path.stem): json.loads(path.read_text())
        for path in made.paths.root.glob("stages/train/attempts/*/preflight/*.json")
    }
    assert reports["001-00", "node0"]["result"] == "node"
    assert reports["001-00", "node0"]["findings"][0]["message"].startswith("GPU 1 has fallen off the bus")
    assert {(node, report["result"]) for (attempt, node), report in reports.items() if attempt == "001-01"} == {
        ("node1", "ok"),
        ("node2", "ok"),
    }
