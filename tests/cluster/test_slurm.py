"""Runs on a real Slurm with the fake worker: user commands, failures, and the status they lead to."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.errors import SchedulerError, SiteError
from hpclm.runs.cancel import cancel
from hpclm.runs.collect import collect
from hpclm.runs.rank_logs import choose_stage, log_path
from hpclm.runs.record import Run, find_run
from hpclm.runs.resume import resume
from hpclm.runs.status import status_of
from hpclm.runs.submit import submit
from hpclm.schedulers.slurm import client
from launch.dev_cluster import Cluster
from tests.support.harness import CHAIN, Stage, prepared, until, until_over, use_fake_worker, words
from tests.support.sites import SLURM
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture
def runs(cluster: Cluster, tmp_path: Path) -> Path:
    """A folder of runs whose name quoting must survive."""
    return tmp_path / 'it\'s "my" $HOME #1; `runs`'


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, *stages: Stage, site: Any = SLURM) -> Run:
    use_fake_worker(monkeypatch, stages)
    return submit(prepared(folder, stages, site))


def queued(cluster: Cluster) -> str:
    return cluster.command("squeue", "--noheader", "--format=%i %T")


def test_three_stages_run_over_two_nodes_one_after_the_other(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    stages = tuple(dataclasses.replace(stage, nodes=2, devices_per_node=1) for stage in CHAIN)
    run = start(monkeypatch, runs, *stages)
    status = until_over(run)
    assert words(status) == {"pretrain": "completed", "ptune": "completed", "evaluate": "completed"}, status
    nodes = {json.loads(path.read_text())["node"] for path in run.paths.root.glob("stages/pretrain/attempts/*/ranks/*")}
    assert nodes == {"node0", "node1"}
    begun = [
        json.loads(next(run.paths.root.glob(f"stages/{name}/attempts/*/ranks/00000.json")).read_text())
        for name in ("pretrain", "ptune", "evaluate")
    ]
    assert begun[0]["ended_at"] <= begun[1]["started_at"]
    assert begun[1]["ended_at"] <= begun[2]["started_at"]
    log = log_path(run, choose_stage(run, status, "pretrain"), 1).read_text()
    assert "rank 1 of 2, local 0, node 1, threads 1" in log
    collected = collect(run, pred_file=runs / "test-results.txt")
    assert (runs / "test-results.txt").read_text().splitlines() == ["q0 = a 0", "q1 = a 1", "q2 = a 2"]
    assert collected.summary["scores"] == {"first": {"exact_match": 0.5, "examples": 3}}


def test_the_script_submitted_is_the_dry_runs(monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster) -> None:
    from hpclm.runs.submit import scripts

    use_fake_worker(monkeypatch, CHAIN)
    made = prepared(runs, CHAIN, SLURM)
    shown = {job.stage: script.text for job, script in scripts(made)}
    run = submit(made)
    for stage in CHAIN:
        job_id = run.record.last_submit(stage.name).job_ids[stage.name]
        assert run.paths.stage(stage.name).script.read_text() == shown[stage.name]
        held = cluster.command("scontrol", "write", "batch_script", job_id, "-")
        assert held.strip() == shown[stage.name].strip()
    cancel(run)
    until_over(run)


def test_gpu_stages_ask_for_gpus_and_every_rank_sees_all_of_its_node(
    monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster
) -> None:
    monkeypatch.setattr(
        "hpclm.runs.job_building._PREFLIGHT_S", 0
    )  # it would report, correctly, that there is no driver
    bound = dataclasses.replace(SLURM, sbatch={"gpu-bind": "single:1"})  # what a site may have for other programs
    stage = Stage("train", device="gpu", devices_per_node=4, behaviour={"seconds": 3})
    run = start(monkeypatch, runs, stage, site=bound)
    until(run, "train", "running")
    job_id = run.record.last_submit("train").job_ids["train"]
    shown = cluster.command("scontrol", "show", "job", "--details", job_id)
    assert "gpu:4" in shown
    pids = [json.loads(path.read_text())["pid"] for path in run.paths.root.glob("stages/train/attempts/*/ranks/*")]
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=0,1,2,3" in environment
    assert until_over(run).state == "completed"


def test_a_cancelled_run_says_so_and_frees_its_nodes(
    monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster
) -> None:
    stages = (dataclasses.replace(CHAIN[0], behaviour={"seconds": 60}), *CHAIN[1:])
    run = start(monkeypatch, runs, *stages)
    until(run, "pretrain", "running")
    assert set(cancel(run)) == {"pretrain", "ptune", "evaluate"}
    run = find_run(runs, None)
    status = until_over(run)
    assert words(status) == dict.fromkeys(("pretrain", "ptune", "evaluate"), "cancelled")
    assert all(stage.reason == "by `hpclm cancel`" for stage in status.stages)
    wait_until("an empty queue", lambda: not queued(cluster), seen=lambda: queued(cluster))
    assert cancel(run) == []


def test_a_cancel_by_somebody_else_is_told_from_ours(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    run = start(monkeypatch, runs, Stage("train", behaviour={"seconds": 60}))
    until(run, "train", "running")
    client.scancel(run.record.submits[-1].job_ids.values())
    status = until_over(run)
    assert status.state == "cancelled"
    assert "outside hpclm" in status.reason


def test_the_signal_that_ended_a_jobs_script_is_named(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    run = start(monkeypatch, runs, Stage("train", behaviour={"seconds": 60}))
    until(run, "train", "running")
    job = run.record.submits[-1].job_ids["train"]
    script = subprocess.run(["pgrep", "-f", rf"job0*{job}/slurm_script"], capture_output=True, text=True, check=True)
    os.kill(int(script.stdout.split()[0]), signal.SIGKILL)
    status = until_over(run)
    assert status.state == "failed"
    assert "signal 9 (SIGKILL) ended the job's script" in status.reason


def test_a_failing_rank_is_named_with_its_reason_and_later_stages_are_skipped(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    fail = {"rank": 3, "kind": "data", "message": "rows.jsonl:7: field 'answer' is missing; add it"}
    first = dataclasses.replace(CHAIN[0], nodes=2, behaviour={"seconds": 30, "fail": fail})
    run = start(monkeypatch, runs, first, *CHAIN[1:])
    status = until_over(run)
    assert words(status) == {"pretrain": "failed", "ptune": "skipped", "evaluate": "skipped"}, status
    assert status.reason == "pretrain: rank 3 on node1: rows.jsonl:7: field 'answer' is missing; add it"
    assert status.stages[0].rank == 3
    assert log_path(run, choose_stage(run, status, None), None).name == "00003.log"


def test_a_killed_rank_is_reported_and_resume_finishes_the_run(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    first = dataclasses.replace(CHAIN[0], behaviour={"seconds": 30, "kill": 1})
    run = start(monkeypatch, runs, first, *CHAIN[1:])
    status = until_over(run)
    assert words(status) == {"pretrain": "failed", "ptune": "skipped", "evaluate": "skipped"}, status
    assert "3 attempts in a row saved no checkpoint after step 0" in status.reason
    assert "vanished without an error message (SIGKILL, out of memory or node loss)" in status.reason
    # two failures on one node make the node suspect, for this stage
    assert "not the first failure on node0; requeued without node0" in status.stages[0].history[1][1]
    assert not (runs / "nodes.jsonl").exists()
    (run.paths.root / "behaviour.json").write_text("{}")
    again, stages = resume(run)
    assert stages == ["pretrain", "ptune", "evaluate"]
    assert until_over(again).state == "completed"
    attempts = [attempt.name for attempt in again.paths.stage("pretrain").all_attempts()]
    assert attempts == ["001-00", "001-01", "001-02", "002-00"]


def test_a_rank_that_cannot_start_leaves_its_last_words(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    status = until_over(start(monkeypatch, runs, Stage("train", behaviour={"mute": True})))
    assert status.state == "failed"
    assert "ImportError: no engine in this image" in status.reason


def test_a_node_taken_down_costs_a_requeue_and_no_stage(
    monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster
) -> None:
    run = start(monkeypatch, runs, Stage("pretrain", nodes=2, devices_per_node=1, behaviour={"seconds": 5}), CHAIN[1])
    until(run, "pretrain", "running")
    try:
        cluster.take_down("node1")
        waiting = until(run, "pretrain", "pending")
        assert "restarting: a node failed or was taken down; requeued" in waiting.reason
        status = until_over(run)
    finally:
        cluster.bring_back("node1")
    assert words(status) == {"pretrain": "completed", "ptune": "completed"}
    ((_, sentence),) = status.stages[0].history
    assert sentence == "attempt 1 on node[0-1]: a node failed or was taken down; requeued"


def test_a_stage_longer_than_its_partition_allows_says_how_it_will_go(
    monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster
) -> None:
    made = prepared(runs, (Stage("train", time_limit_min=5000),), SLURM)
    assert made.notes == ["stage train: 5000 min over jobs of 1440 min, one after the other"]
    assert made.problems == ()


def test_time_limits_are_reported_whether_or_not_the_ranks_stop_by_themselves(
    monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    obedient = start(monkeypatch, runs, Stage("obedient", time_limit_min=1, behaviour={"seconds": 200}))
    deaf = start(monkeypatch, runs, Stage("deaf", time_limit_min=1, behaviour={"seconds": 200, "deaf": True}))
    for run in (obedient, deaf):
        status = until_over(run)
        assert status.state == "timeout", status
        assert "the time limit of 1 min was reached" in status.reason


def test_what_the_controller_forgot_is_read_from_the_runs_own_files(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path
) -> None:
    fail = {"rank": 1, "message": "loss is not finite at step 3"}
    failed = start(monkeypatch, runs, Stage("pretrain", behaviour={"seconds": 30, "fail": fail}), CHAIN[1])
    done = start(monkeypatch, runs, Stage("train"))
    cut = start(monkeypatch, runs, Stage("train", behaviour={"seconds": 60}))
    until(cut, "train", "running")
    cancel(cut)

    def ended() -> list[Path]:
        return list(runs.glob("*/stages/*/slurm/*_exit"))

    wait_until("three exit codes", lambda: len(ended()) >= 3, seen=ended)
    for kept in runs.glob("*/stages/*/scheduler.json"):
        kept.unlink()
    shadow(monkeypatch, tmp_path, "squeue", "exit 0")
    failed_now, done_now, cut_now = status_of([failed, done, find_run(runs, cut.record.run)])
    assert failed_now.state == "failed"
    assert "loss is not finite at step 3" in failed_now.reason
    assert words(failed_now)["ptune"] == "skipped"
    assert done_now.state == "completed"
    assert cut_now.state == "cancelled"


def test_one_question_to_the_scheduler_however_many_runs(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path
) -> None:
    started = [start(monkeypatch, runs, *CHAIN) for _ in range(6)]
    calls = tmp_path / "calls"
    for name in ("squeue", "sacct", "scontrol", "sinfo"):
        shadow(monkeypatch, tmp_path, name, f'echo "{name} $*" >> {calls}')
    statuses = status_of(started)
    assert len(statuses) == 6
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["squeue"]
    for run in started:
        cancel(run)
    for run in started:
        until_over(find_run(runs, run.record.run))


def test_a_job_whose_id_was_never_written_is_found_again(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    run = start(monkeypatch, runs, Stage("train"))
    job_id = run.record.last_submit("train").job_ids["train"]
    lost = run.save(run.record.with_submit(dataclasses.replace(run.record.submits[0], job_ids={})))
    (status,) = status_of([lost])
    assert status.stages[0].job_id == job_id
    assert find_run(runs, None).record.submits[0].job_ids == {"train": job_id}
    assert until_over(lost).state == "completed"


def test_a_stage_refused_half_way_takes_the_earlier_ones_back(
    monkeypatch: pytest.MonkeyPatch, runs: Path, tmp_path: Path, cluster: Cluster
) -> None:
    use_fake_worker(monkeypatch, CHAIN)
    made = prepared(runs, CHAIN, SLURM)
    real = shadow(
        monkeypatch, tmp_path, "sbatch", 'case "$*" in *evaluate*) echo "no more jobs for you" >&2; exit 1;; esac'
    )
    assert real
    with pytest.raises(SchedulerError, match="no more jobs for you"):
        submit(made)
    run = find_run(runs, None)
    status = until_over(run)
    assert words(status) == {"pretrain": "cancelled", "ptune": "cancelled", "evaluate": "cancelled"}
    assert "no more jobs for you" in status.reason
    assert queued(cluster) == ""


def test_a_submit_that_the_scheduler_refuses_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster
) -> None:
    site = dataclasses.replace(SLURM, sbatch={"reservation": "no-such-reservation"})
    use_fake_worker(monkeypatch, CHAIN)
    with pytest.raises(SchedulerError, match="reservation"):
        submit(prepared(runs, CHAIN, site))
    assert not runs.exists()
    assert queued(cluster) == ""


@pytest.mark.parametrize(
    ("stage", "words_said"),
    [
        (Stage("train", nodes=50), "50 nodes needed, partition main has 4"),
        (Stage("train", device="gpu", devices_per_node=9), "9 GPUs per node needed, partition main has 8"),
        (Stage("train", memory_gib=64), "64 GiB per node needed"),
        (Stage("train", devices_per_node=17), "17 CPUs per node needed, partition main has 16"),
    ],
)
def test_what_could_never_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, runs: Path, cluster: Cluster, stage: Stage, words_said: str
) -> None:
    use_fake_worker(monkeypatch, (stage,))
    with pytest.raises(SiteError, match=words_said):
        submit(prepared(runs, (stage,), SLURM))
    assert not runs.exists()
    assert queued(cluster) == ""


def test_a_submit_from_within_a_job_does_not_inherit_its_shape(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    for name, value in (
        ("SLURM_NTASKS", "99"),
        ("SBATCH_PARTITION", "nowhere"),
        ("HPCLM_RANK", "5"),
        ("SQUEUE_STATES", "PD"),
    ):
        monkeypatch.setenv(name, value)
    status = until_over(start(monkeypatch, runs, Stage("train", devices_per_node=1)))
    assert status.state == "completed", status


def shadow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, line: str) -> bool:
    """Put a command on PATH that does `line` first and then, unless that ended it, is the real one."""
    import shutil

    real = shutil.which(name)
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f'#!/bin/sh\n{line}\nexec {real} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return real is not None
