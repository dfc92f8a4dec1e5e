"""A hundred runs at once, and submits that are killed: nothing is lost, nothing runs twice."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpclm.core.errors import HpclmError
from hpclm.core.exit_codes import ExitCode
from hpclm.runs import resume as resuming
from hpclm.runs.cancel import cancel
from hpclm.runs.record import Run, find_run, in_order, read_run
from hpclm.runs.status import status_of
from hpclm.runs.submit import submit
from hpclm.schedulers import commands
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.submission import verify
from launch.dev_cluster import Cluster
from tests.support.harness import CHAIN, Stage, prepared, until, until_over, use_fake_worker
from tests.support.processes import LIMIT_S
from tests.support.sites import SLURM
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MANY = 100
USER = commands.run_command(["id", "-un"]).out.strip()


def test_a_hundred_runs_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster) -> None:
    stage = Stage("train", devices_per_node=1, memory_gib=1, behaviour={"seconds": 0.1})
    use_fake_worker(monkeypatch, (stage,))
    folder = tmp_path / "runs"
    made = [prepared(folder, (stage,), SLURM) for _ in range(MANY)]
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(submit, made))
    for run in runs:
        assert until_over(run).state == "completed"
    assert len({run.record.run for run in runs}) == MANY
    assert len({run.record.submits[0].job_ids["train"] for run in runs}) == MANY
    for run in runs:
        assert len(list(run.paths.root.glob("stages/train/attempts/*/ranks/*.json"))) == 1
    tags = [info.tag for info in client.jobs_of([USER]) if info.tag.startswith("hpclm:")]
    assert len(tags) == len(set(tags))
    assert {run.record.tag("train") for run in runs} <= set(tags)


def broken_off(folder: Path, delay_s: float) -> None:
    """Begin a submit in a process of its own and kill that without warning."""
    ready = multiprocessing.get_context("fork").Event()

    def work() -> None:
        made = prepared(folder, CHAIN, SLURM)
        ready.set()
        submit(made)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert ready.wait(LIMIT_S)
    time.sleep(delay_s)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_a_submit_killed_at_any_instant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster) -> None:
    """What is left is no run, or one that status finds and resume completes; and no job without a run."""
    stages = tuple(dataclasses.replace(stage, devices_per_node=1) for stage in CHAIN)
    use_fake_worker(monkeypatch, stages)
    folder = tmp_path / "runs"
    began = time.monotonic()
    submit(prepared(folder, stages, SLURM))
    whole_s = time.monotonic() - began
    for number in range(40):
        broken_off(folder, whole_s * number / 34)
    time.sleep(2)  # an sbatch that was under way comes to its end
    runs = [read_run(root) for root in in_order(folder)]
    assert len(runs) > 5, "the kills came too early to show anything"
    status_of(runs)
    noted = {job_id for run in reread(runs) for one in run.record.submits for job_id in one.job_ids.values()}
    ours = {info.job_id for info in client.jobs_of([USER]) if any(run.record.run in info.tag for run in runs)}
    assert ours == noted
    incomplete = 0
    monkeypatch.setattr(resuming, "SETTLED_S", 0.0)
    for run in reread(runs):
        (status,) = status_of([run])
        if any(stage.job_id is None for stage in status.stages):
            incomplete += 1
            run, _ = resuming.resume(run)
        assert until_over(find_run(folder, run.record.run)).state == "completed"
    assert incomplete > 0, "no kill came between two stages"
    for run in reread(runs):
        for name in ("pretrain", "ptune", "evaluate"):
            assert len(run.paths.stage(name).all_attempts()) == 1, "a stage ran twice"


def reread(runs: list[Run]) -> list[Run]:
    return [find_run(run.paths.root.parent, run.record.run) for run in runs]


def test_what_may_still_be_under_way_is_not_submitted_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster
) -> None:
    use_fake_worker(monkeypatch, CHAIN)
    run = submit(prepared(tmp_path / "runs", CHAIN, SLURM))
    first = run.record.submits[0]
    client.scancel([first.job_ids["evaluate"]])
    verify(list(first.job_ids.values()), USER)
    lost = dataclasses.replace(first, job_ids={"pretrain": first.job_ids["pretrain"]})
    run = run.save(dataclasses.replace(run.record, run="another", submits=(lost,)))
    with pytest.raises(HpclmError, match="may be in the middle of a submit"):
        resuming.resume(run)


def test_a_second_job_of_the_same_submit_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster
) -> None:
    """As two submits on a file system without locks would start it; and what is left waiting is cancelled."""
    stages = (dataclasses.replace(CHAIN[0], devices_per_node=1, behaviour={"seconds": 6}),)
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, SLURM))
    until(run, "pretrain", "running")
    paths = run.paths.stage("pretrain")
    other = cluster.command("sbatch", "--parsable", str(paths.script)).strip()
    wait_until("the other job's end", lambda: paths.job_exit(other).exists())
    assert paths.job_exit(other).read_text().split()[0] == str(int(ExitCode.SECOND_JOB))
    assert f"job {run.record.submits[0].job_ids['pretrain']} runs this stage" in paths.batch_log(other).read_text()
    assert until_over(run).state == "completed"
    assert [attempt.name for attempt in paths.all_attempts()] == ["001-00"]


def test_a_job_submitted_by_hand_goes_on_where_a_dead_one_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster
) -> None:
    stages = (dataclasses.replace(CHAIN[0], devices_per_node=1, behaviour={"seconds": 12}),)
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, SLURM))
    until(run, "pretrain", "running")
    client.scancel(run.record.submits[0].job_ids.values())
    until(run, "pretrain", "cancelled")
    paths = run.paths.stage("pretrain")
    first, second = (cluster.command("sbatch", "--parsable", str(paths.script)).strip() for _ in range(2))
    wait_until("both jobs' end", lambda: paths.job_exit(first).exists() and paths.job_exit(second).exists())
    codes = sorted(int(paths.job_exit(job).read_text().split()[0]) for job in (first, second))
    assert codes == [0, int(ExitCode.SECOND_JOB)], "one of the two runs the stage"
    assert [attempt.name for attempt in paths.all_attempts()] == ["001-00", "001-01"]
    assert status_of([run])[0].state == "completed"


def test_a_held_job_of_a_complete_run_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster
) -> None:
    stages = (dataclasses.replace(CHAIN[0], devices_per_node=1),)
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, SLURM))
    assert until_over(run).state == "completed"
    job = run.record.submits[0].job_ids["pretrain"]
    cluster.command("scontrol", "requeuehold", job)

    def waits() -> bool:
        return "PENDING" in cluster.command("squeue", "--noheader", f"--jobs={job}", "-o", "%T")

    wait_until("the held job", waits)
    assert cancel(run) == ["pretrain"]
    wait_until("its end", lambda: not waits())
    assert status_of([run])[0].state == "completed"
    assert cancel(run) == []
