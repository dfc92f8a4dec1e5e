"""Submitting to a scheduler that breaks off half way: no job without a record, no record without a job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpclm.core.errors import SchedulerError
from hpclm.runs import submit as submitting
from hpclm.runs.record import Run, find_run
from hpclm.runs.status import status_of
from hpclm.schedulers.slurm import client
from tests.support.harness import CHAIN, prepared, use_fake_worker, words
from tests.support.sites import SLURM


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose Slurm takes every job and knows none of them, until a test says otherwise."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    write(folder, "sinfo", "echo 'main*|up|4|16|16000|1-00:00:00|gpu:8'")
    write(folder, "squeue", 'n=0; while read -r tag; do n=$((n+1)); echo "$n|PENDING|None|N/A|N/A||$tag"; done < tags')
    write(folder, "sbatch", TAKE)
    write(folder, "scancel", "echo $* >> cancelled")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tags").touch()
    use_fake_worker(monkeypatch, CHAIN)
    return folder


# Notes the comment of the script it is given as a job, and answers with its number.
TAKE = 'for last; do :; done; grep -o "hpclm:[^ ]*" "$last" | head -1 >> tags; wc -l < tags'


def write(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def submit(tmp_path: Path) -> Run:
    return submitting.submit(prepared(tmp_path / "runs", CHAIN, SLURM))


def test_a_lost_answer_of_sbatch_is_not_a_lost_job(tmp_path: Path, programs: Path) -> None:
    write(programs, "sbatch", f"{TAKE}; echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    run = submit(tmp_path)
    assert run.record.submits[0].job_ids == {"pretrain": "1", "ptune": "2", "evaluate": "3"}


def test_the_first_refusal_leaves_nothing(tmp_path: Path, programs: Path) -> None:
    write(programs, "sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1")
    with pytest.raises(SchedulerError, match="sbatch refused the job: Batch job submission failed: Invalid account"):
        submit(tmp_path)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cancelled").exists()


def test_ctrl_c_between_two_stages_takes_the_first_back(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = client.sbatch

    def interrupted(argv: Sequence[str]) -> str:
        if "/ptune/" in argv[-1]:
            raise KeyboardInterrupt
        return real(argv)

    monkeypatch.setattr(client, "sbatch", interrupted)
    with pytest.raises(SchedulerError, match="stage ptune: interrupted"):
        submit(tmp_path)
    assert (tmp_path / "cancelled").read_text().split() == ["1"]
    run = find_run(tmp_path / "runs", None)
    assert run.record.submits[0].error == "stage ptune: interrupted"


def test_where_the_controller_falls_silent_the_record_stays(tmp_path: Path, programs: Path) -> None:
    write(programs, "sbatch", f"{TAKE}; exit 1")
    write(programs, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="cannot be determined"):
        submit(tmp_path)
    run = find_run(tmp_path / "runs", None)
    write(programs, "squeue", 'echo "1|RUNNING|None|N/A|N/A|node0|$(head -1 tags)"')
    (status,) = status_of([run])
    assert words(status)["pretrain"] == "running"
    assert find_run(tmp_path / "runs", None).record.submits[0].job_ids == {"pretrain": "1"}


def test_a_scheduler_that_cannot_be_asked_is_said_and_nothing_guessed(tmp_path: Path, programs: Path) -> None:
    run = submit(tmp_path)
    write(programs, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    (status,) = status_of([run])
    assert status.state == "unknown"
    assert status.warnings == ("squeue: Unable to contact slurm controller",)
    assert not status.over
