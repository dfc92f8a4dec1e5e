"""Sweeps on the real scheduler: one array per stage, a limit that holds, and members that fail alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.runs import sweep as sweeping
from hpclm.runs.status import status_of
from hpclm.runs.submit import Request
from hpclm.runs.sweep import Sweep, find_sweep, prepare_sweep, submit_sweep
from hpclm.schedulers.slurm import client
from launch.dev_cluster import Cluster
from tests.support.harness import Stage, use_fake_worker
from tests.support.samples import changed, write
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "it's a folder #1"
    place.mkdir()
    stages = [{"name": "pretrain", "task": "pretrain"}, {"name": "more", "task": "p-tuning", "base": "pretrain"}]
    write(place, changed(("container", None), ("stages", stages), ("resources.memory_gib", 1)))
    monkeypatch.chdir(place)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return place


def start(count: int, limit: int | None = None) -> Sweep:
    axis = sweeping.parse_axis("seed=" + ",".join(map(str, range(count))))
    sweep, made = prepare_sweep(Request(Path("recipe.yaml"), site="slurm"), [axis], max_running=limit)
    submit_sweep(sweep, made)
    return sweep


def states(sweep: Sweep) -> Counter[str]:
    return Counter(status.state for status in status_of(sweep.runs()))


def until_over(sweep: Sweep) -> Counter[str]:
    over: Counter[str] = Counter()

    def look() -> bool:
        over.clear()
        over.update(states(sweep))
        return not {"pending", "running", "unknown"} & set(over)

    wait_until("the sweep's end", look, seen=lambda: over, pause_s=0.3)
    return over


def test_a_limit_holds_and_one_failure_stays_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = {"seconds": 1, "seed": 7, "fail": {"rank": 1, "kind": "data", "message": "row 3 is no JSON"}}
    use_fake_worker(monkeypatch, (Stage("pretrain", behaviour=fails), Stage("more")))
    sweep = start(20, limit=4)
    jobs = {run.record.submits[0].job_ids["pretrain"].split("_")[0] for run in sweep.runs()}
    assert len(jobs) == 1, "one array a stage"
    (job,) = jobs
    running = []

    def over() -> bool:
        shown = cluster.command("squeue", "--array", "--noheader", "--states=R", f"--jobs={job}", check=False)
        running.append(len(shown.splitlines()))
        return not {"pending", "running"} & set(states(sweep))

    wait_until("the sweep's end", over, seen=lambda: states(sweep), pause_s=0.1)
    assert 1 < max(running) <= 4
    assert until_over(sweep) == {"completed": 19, "failed": 1}
    (failed,) = (status for status in status_of(sweep.runs()) if status.state == "failed")
    assert failed.run == f"{sweep.name}.007"
    assert [stage.state for stage in failed.stages] == ["failed", "skipped"]
    assert "row 3 is no JSON" in failed.reason
    assert cli.run(["collect", sweep.name, "--json"]) == 0
    gathered = json.loads(capsys.readouterr().out)
    assert Counter(one["state"] for one in gathered["members"]) == {"completed": 19, "failed": 1}
    assert gathered["members"][-1]["run"] == f"{sweep.name}.007"


def test_more_members_than_an_array_may_have(folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    use_fake_worker(monkeypatch, (Stage("pretrain"), Stage("more")))
    monkeypatch.setattr(client, "max_array_size", lambda: 4)
    sweep = start(5)
    ids = [run.record.submits[0].job_ids["pretrain"] for run in sweep.runs()]
    assert [one.split("_")[1] for one in ids] == ["0", "1", "2", "0", "1"]
    assert until_over(sweep) == {"completed": 5}


def test_a_member_is_cancelled_alone_and_a_sweep_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    use_fake_worker(monkeypatch, (Stage("pretrain", behaviour={"seconds": 60}), Stage("more")))
    sweep = start(3)
    assert cli.run(["cancel", f"{sweep.name}.001"]) == 0
    wait_until("the member's end", lambda: status_of(sweep.runs())[1].state == "cancelled", seen=lambda: states(sweep))
    assert {status_of(sweep.runs())[index].state for index in (0, 2)} <= {"pending", "running"}
    assert cli.run(["cancel", sweep.name]) == 0
    again = find_sweep(folder / "runs", sweep.name)
    assert again is not None
    assert until_over(again) == {"cancelled": 3}


def test_members_whose_numbers_were_never_written_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    """As when the shell dies between sbatch and the records."""
    use_fake_worker(monkeypatch, (Stage("pretrain", behaviour={"seconds": 2}), Stage("more")))
    sweep = start(3)
    noted = [dict(run.record.submits[0].job_ids) for run in sweep.runs()]
    for run in sweep.runs():
        raw = json.loads(run.paths.record.read_text())
        raw["submits"][0]["job_ids"] = {}
        run.paths.record.write_text(json.dumps(raw))
    status_of(sweep.runs())
    assert [dict(run.record.submits[0].job_ids) for run in sweep.runs()] == noted
    assert until_over(sweep) == {"completed": 3}


def test_a_member_that_never_started_is_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    """Its job would have made the folders of its stages."""
    use_fake_worker(monkeypatch, (Stage("pretrain", behaviour={"seconds": 2}), Stage("more")))
    sweep = start(2, limit=1)
    second = sweep.runs()[1]
    assert cli.run(["cancel", second.record.run]) == 0
    assert not second.paths.stage("pretrain").spec.exists()
    assert cli.run(["resume", second.record.run]) == 0
    assert until_over(sweep) == {"completed": 2}
    for run in sweep.runs():
        for stage in ("pretrain", "more"):
            assert "hpclm" in run.paths.stage(stage).script.read_text()
            assert run.paths.stage(stage).batch_logs()
