"""The local executor: runs that outlive the shell, and how each end is called."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpclm.core.errors import HpclmError, SchedulerError, SiteError
from hpclm.core.files import read_json
from hpclm.core.processes import is_alive
from hpclm.core.records import from_dict
from hpclm.runs.cancel import cancel
from hpclm.runs.rank_logs import choose_stage, follow, log_path, read
from hpclm.runs.record import Run, find_run
from hpclm.runs.resume import resume
from hpclm.runs.status import status_of
from hpclm.runs.submit import submit
from hpclm.schedulers.local import executor
from hpclm.schedulers.local.local_records import SupervisorState
from tests.support import processes
from tests.support.harness import CHAIN, Stage, prepared, until, until_over, use_fake_worker, words
from tests.support.sites import LOCAL
from tests.support.waiting import wait_until


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, *stages: Stage) -> Run:
    use_fake_worker(monkeypatch, stages)
    return submit(prepared(folder / "it's my $HOME #1", stages, LOCAL))


def pids(run: Run) -> list[int]:
    return [json.loads(path.read_text())["pid"] for path in run.paths.root.glob("stages/*/attempts/*/ranks/*.json")]


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def supervisor(run: Run) -> SupervisorState:
    return from_dict(SupervisorState, read_json(run.paths.local(run.record.submits[-1].number).state))


def test_stages_run_in_order_each_rank_with_its_place_and_share_of_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages = (dataclasses.replace(CHAIN[0], nodes=2), *CHAIN[1:])
    run = start(monkeypatch, tmp_path, *stages)
    status = until_over(run)
    assert words(status) == dict.fromkeys(("pretrain", "ptune", "evaluate"), "completed")
    log = "".join(read(log_path(run, choose_stage(run, status, "pretrain"), 3)))
    threads = max(1, len(os.sched_getaffinity(0)) // 4)
    assert log.splitlines()[0] == f"rank 3 of 4, local 1, node 1, threads {threads}"


def test_a_run_outlives_the_process_that_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "import sys, pytest; from pathlib import Path\n"
        "from tests.support.harness import *; from tests.support.sites import LOCAL\n"
        "stages = (Stage('train', behaviour={'seconds': 1.5}),)\n"
        "use_fake_worker(pytest.MonkeyPatch(), stages)\n"
        "print(submitting.submit(prepared(Path(sys.argv[1]) / 'runs', stages, LOCAL)).paths.root)"
    )
    shell = processes.start(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    out, _ = shell.communicate(timeout=processes.LIMIT_S)
    try:
        os.killpg(shell.pid, signal.SIGHUP)  # as a closing terminal does
        pytest.fail("something of the run was left in the shell's session")
    except ProcessLookupError:
        pass
    run = find_run(tmp_path, out.strip())
    assert is_alive(supervisor(run))
    assert until_over(run).state == "completed"


def test_cancel_lets_ranks_save_ends_them_and_skips_nothing_silently(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = start(monkeypatch, tmp_path, dataclasses.replace(CHAIN[0], behaviour={"seconds": 60}), *CHAIN[1:])
    until(run, "pretrain", "running")
    ranks = "stages/pretrain/attempts/*/ranks/*.json"
    wait_until("both ranks", lambda: len(list(run.paths.root.glob(ranks))) == 2)
    assert cancel(run) == ["pretrain", "ptune", "evaluate"]
    run = find_run(run.paths.root.parent, None)
    status = until_over(run)
    assert words(status) == dict.fromkeys(("pretrain", "ptune", "evaluate"), "cancelled")
    assert [json.loads(path.read_text())["exit_code"] for path in run.paths.root.glob(ranks)] == [30, 30]
    assert not any(map(running, pids(run)))
    assert cancel(run) == []


def test_a_failing_rank_ends_the_others_and_the_reason_is_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fail = {"rank": 1, "message": "loss is not finite at step 3"}
    run = start(monkeypatch, tmp_path, dataclasses.replace(CHAIN[0], behaviour={"seconds": 60, "fail": fail}), CHAIN[1])
    status = until_over(run)
    assert words(status) == {"pretrain": "failed", "ptune": "skipped"}
    assert status.reason == "pretrain: rank 1 on host-0: RuntimeError: loss is not finite at step 3"
    assert status.stages[1].reason == "stage pretrain did not complete"
    assert not any(map(running, pids(run)))


def test_ranks_that_do_not_notice_are_ended_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.3)
    monkeypatch.setattr(executor, "KILL_WAIT_S", 0.3)
    run = start(monkeypatch, tmp_path, Stage("train", behaviour={"seconds": 60, "kill": 1, "deaf": True}))
    status = until_over(run)
    assert status.state == "failed"
    assert "rank" in status.reason
    assert not any(map(running, pids(run)))


def test_memory_exhaustion_has_its_own_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fail = {"rank": 0, "kind": "memory", "message": "CUDA out of memory. Tried to allocate 2.00 GiB"}
    status = until_over(start(monkeypatch, tmp_path, Stage("train", behaviour={"fail": fail})))
    assert status.state == "out-of-memory"
    assert "CUDA out of memory" in status.reason


def test_a_killed_rank_is_said_to_be_and_resume_does_only_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.3)
    dies = dataclasses.replace(CHAIN[1], behaviour={"kill": 1, "seconds": 60})
    run = start(monkeypatch, tmp_path, CHAIN[0], dies, CHAIN[2])
    status = until_over(run)
    assert words(status) == {"pretrain": "completed", "ptune": "failed", "evaluate": "skipped"}
    assert "3 attempts in a row saved no checkpoint after step 0" in status.reason
    assert "rank 1 on host-0 vanished without an error message" in status.reason
    assert len(status.stages[1].history) == 3
    result = run.paths.stage("pretrain").result.stat().st_mtime_ns
    (run.paths.root / "behaviour.json").write_text("{}")
    again, stages = resume(run)
    assert stages == ["ptune", "evaluate"]
    assert until_over(again).state == "completed"
    assert run.paths.stage("pretrain").result.stat().st_mtime_ns == result
    attempts = [attempt.name for attempt in run.paths.stage("ptune").all_attempts()]
    assert attempts == ["001-00", "001-01", "001-02", "002-00"]
    with pytest.raises(HpclmError, match="nothing to resume"):
        resume(again)


def test_a_run_that_goes_on_is_not_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = start(monkeypatch, tmp_path, Stage("train", behaviour={"seconds": 60}))
    until(run, "train", "running")
    with pytest.raises(HpclmError, match=r"is not over: train \(running\)"):
        resume(run)
    cancel(run)
    until_over(find_run(run.paths.root.parent, None))


@pytest.mark.parametrize("deaf", [False, True])
def test_the_time_limit_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deaf: bool) -> None:
    whole = executor.describe
    monkeypatch.setattr(
        executor, "describe", lambda *a: dataclasses.replace(whole(*a), time_limit_s=1.0, warning_s=0.4)
    )
    monkeypatch.setattr(executor, "KILL_WAIT_S", 0.3)
    run = start(monkeypatch, tmp_path, dataclasses.replace(CHAIN[0], behaviour={"seconds": 60, "deaf": deaf}), CHAIN[1])
    status = until_over(run)
    assert words(status) == {"pretrain": "timeout", "ptune": "skipped"}
    assert "time limit" in status.reason
    assert "hpclm resume" in status.reason
    assert not any(map(running, pids(run)))


def test_a_supervisor_that_vanishes_takes_its_ranks_along_and_status_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = start(monkeypatch, tmp_path, dataclasses.replace(CHAIN[0], behaviour={"seconds": 60}), CHAIN[1])
    until(run, "pretrain", "running")
    os.kill(supervisor(run).pid, signal.SIGKILL)
    status = until_over(run)
    assert words(status) == {"pretrain": "failed", "ptune": "skipped"}
    wait_until("its ranks' end", lambda: not any(map(running, pids(run))), seen=lambda: pids(run))


def test_no_result_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = until_over(start(monkeypatch, tmp_path, Stage("train", behaviour={"no_result": True})))
    assert status.state == "failed"
    assert "none wrote result.json" in status.reason


def test_a_rank_that_cannot_start_leaves_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = until_over(start(monkeypatch, tmp_path, Stage("train", behaviour={"mute": True})))
    assert status.state == "failed"
    assert "ImportError: no engine in this image" in status.reason


def test_logs_are_followed_to_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = start(monkeypatch, tmp_path, Stage("train", behaviour={"seconds": 1}))
    (status,) = status_of([run])
    path = log_path(run, choose_stage(run, status, None), 0)
    text = "".join(follow(path, lambda: status_of([run])[0].over))
    assert text.startswith("rank 0 of 2")
    with pytest.raises(HpclmError, match="ranks 0 to 1"):
        log_path(run, choose_stage(run, status, None), 2)


def test_gpus_that_are_not_here_are_refused_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SiteError, match="64 GPUs needed, this machine has"):
        start(monkeypatch, tmp_path, Stage("train", device="gpu", devices_per_node=64))
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SchedulerError, match="the local supervisor did not start"):
        start(monkeypatch, tmp_path, Stage("train"))
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_second_have_two_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = [start(monkeypatch, tmp_path, Stage("train")) for _ in range(3)]
    assert len({run.record.run for run in runs}) == 3
    for run in runs:
        assert until_over(run).state == "completed"


def test_nodes_are_pretended_and_said_to_be(tmp_path: Path) -> None:
    assert "one node" in prepared(tmp_path, (Stage("train", nodes=2),), LOCAL).notes[0]
    assert prepared(tmp_path, (Stage("train"),), LOCAL).notes == []
