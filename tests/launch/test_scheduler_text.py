"""What Slurm prints, read the same from 20.11 to 24.11, and its words turned into ours."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pytest

from hpclm.core.errors import SchedulerError
from hpclm.core.site import Site, SiteContainer
from hpclm.core.states import StageState
from hpclm.schedulers.capabilities import Partition
from hpclm.schedulers.commands import Completed
from hpclm.schedulers.jobs import JobInfo
from hpclm.schedulers.slurm import client, partitions
from hpclm.schedulers.slurm.scheduler import SCHEDULER
from hpclm.schedulers.slurm.state_words import pending_reason, state_of


def when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


A100 = (("a100", 4),)
MIXED = Partition("mix", False, True, 1, 8, 4000, 3, 150, (("a100", 2), ("v100", 1)))
START = when("2026-11-20T22:42:03")


def test_squeue_lines() -> None:
    text = (
        "12|RUNNING|None|2026-11-20T22:42:03|2026-11-20T22:43:03|node[0-1]|hpclm:run-1/one/001\n"
        "13|PENDING|Dependency|N/A|N/A||hpclm:run-1/two/001\n"
        "14|COMPLETED|None|2026-11-20T22:42:03|2026-11-20T22:42:05|node3|somebody's | comment\n"
        "15_[1-4]|PENDING|Resources|N/A|N/A||(null)\n"
        "slurm_load_jobs error: of some kind\n"
    )
    assert client.parse_squeue(text) == [
        JobInfo(
            "12", StageState.RUNNING, "", START, when("2026-11-20T22:43:03"), "node[0-1]", "hpclm:run-1/one/001",
            raw_state="RUNNING",
        ),
        JobInfo(
            "13", StageState.PENDING, "waiting for the stage before it", None, None, "", "hpclm:run-1/two/001",
            raw_state="PENDING",
        ),
        JobInfo(
            "14", StageState.COMPLETED, "", START, when("2026-11-20T22:42:05"), "node3", "", raw_state="COMPLETED",
        ),
    ]  # fmt: skip


def test_sacct_lines() -> None:
    text = (
        "12|CANCELLED by 0|0:0|2026-11-20T22:42:03|2026-11-20T22:43:03|node0\n"
        "13|OUT_OF_ME+|0:125|Unknown|Unknown|None assigned\n"
        "12.batch|FAILED|1:0|2026-11-20T22:42:03|2026-11-20T22:43:03|node0\n"
        "14|NODE_FAIL|1:0|None|Unknown|node1\n"
        "15|FAILED|0:9|None|Unknown|node1\n"
    )
    assert [(job.signal, job.reason) for job in client.parse_sacct(text)] == [
        (0, "by user root"), (125, "the scheduler says OUT_OF_ME+"), (0, ""), (9, ""),
    ]  # fmt: skip
    assert [(job.job_id, job.raw_state, job.state, job.started_at is None) for job in client.parse_sacct(text)] == [
        ("12", "CANCELLED", StageState.CANCELLED, False),
        ("13", "OUT_OF_ME", StageState.UNKNOWN, True),
        ("14", "NODE_FAIL", StageState.NODE_FAIL, True),
        ("15", "FAILED", StageState.FAILED, True),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("main*|up|4|16|16000|1-00:00:00|gpu:8", Partition("main", True, True, 4, 16, 16000, 8, 1440)),
        ("gpu|up|2|64+|9+|infinite|gpu:a100:4(S:0-1)", Partition("gpu", False, True, 2, 64, 9, 4, None, A100)),
        ("cpu|down|1|8|4000|30:00|(null)", Partition("cpu", False, False, 1, 8, 4000, 0, 30)),
        ("mix|up|1|8|4000|2:30:00|gpu:a100:2,nic:2,gpu:v100:1", MIXED),
    ],
)  # fmt: skip
def test_sinfo_lines(line: str, expected: Partition) -> None:
    assert partitions.parse_sinfo(line) == [expected]


def test_a_partition_of_unlike_nodes_is_merged() -> None:
    (merged,) = partitions.parse_sinfo("a*|up|2|8|1000|60:00|(null)\na*|up|3|16|2000|60:00|gpu:4\n")
    assert (merged.nodes, merged.cpus_per_node, merged.memory_mib_per_node, merged.gpus_per_node) == (5, 16, 2000, 4)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("5:30", 5), ("2:30:00", 150), ("1-0", 1440), ("1-12:30", 2190), ("infinite", None), ("n/a", None)],
)
def test_time_limits(text: str, minutes: int | None) -> None:
    assert partitions.parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("PENDING", "pending"),
        ("RUNNING", "running"),
        ("COMPLETING", "running"),
        ("CANCELLED by 1000", "cancelled"),
        ("CANCELLED+", "cancelled"),
        ("TIMEOUT", "timeout"),
        ("DEADLINE", "timeout"),
        ("NODE_FAIL", "node-fail"),
        ("BOOT_FAIL", "node-fail"),
        ("PREEMPTED", "preempted"),
        ("OUT_OF_MEMORY", "out-of-memory"),
        ("SOMETHING_OF_2031", "unknown"),
        ("", "unknown"),
    ],
)
def test_states(said: str, word: str) -> None:
    assert state_of(said) is StageState(word)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Resources", "waiting for nodes to become free"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-3]", "nodes it needs are down, drained or reserved"),
        ("QOSMaxGRESPerUser", "a limit of the QOS or account is reached (QOSMaxGRESPerUser)"),
        ("(null)", "the scheduler has not looked at it yet"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_why_a_job_waits(reason: str, said: str) -> None:
    assert pending_reason(reason) == said


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_scheduler_that_is_not_there_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="squeue not found: this is not a login node"):
        client.jobs_of(["me"])


def test_a_controller_that_does_not_answer_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, tmp_path, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError, match="squeue: Unable to contact slurm controller"):
        client.jobs_of(["me"])


def test_accounting_is_asked_once_and_only_for_what_the_controller_forgot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command(monkeypatch, tmp_path, "squeue", "echo '1|RUNNING|None|N/A|N/A||hpclm:a/b/001'")
    command(
        monkeypatch, tmp_path, "sacct", f'echo "$*" >> {tmp_path}/asked; echo "2|TIMEOUT|0:0|Unknown|Unknown|node0"'
    )
    jobs = client.jobs_of(["me"], ["1", "2", "3"])
    assert [(job.job_id, job.state) for job in jobs] == [("1", "running"), ("2", "timeout")]
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.endswith("--jobs=2,3")


def test_a_cluster_without_accounting_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, tmp_path, "squeue", "true")
    command(monkeypatch, tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert client.jobs_of(["me"], ["1"]) == []


def test_sbatch_gets_neither_the_shape_of_an_outer_job_nor_a_users_filters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command(monkeypatch, tmp_path, "sbatch", f"env > {tmp_path}/env; echo 7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    for name in (
        "SLURM_NNODES",
        "SBATCH_PARTITION",
        "RANK",
        "HPCLM_RANK",
        "PYXIS_CONTAINER_IMAGE",
        "SUBMITIT_EXECUTOR",
    ):
        monkeypatch.setenv(name, "1")
    assert client.sbatch(["job.sh"]) == "7"
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "SLURM_CONF" in names
    assert not names & {
        "SLURM_NNODES",
        "SBATCH_PARTITION",
        "RANK",
        "HPCLM_RANK",
        "PYXIS_CONTAINER_IMAGE",
        "SLURM_TIME_FORMAT",
    }


@pytest.mark.parametrize(
    ("tracker", "runtime", "warned"),
    [("linuxproc", "enroot", True), ("linuxproc", "none", False), ("cgroup", "enroot", False)],
)
def test_doctor_warns_of_a_tracker_that_signals_what_mounts_the_image(
    monkeypatch: pytest.MonkeyPatch, tracker: str, runtime: str, warned: bool
) -> None:
    said = f"MaxArraySize            = 1001\nProctrackType           = proctrack/{tracker}\n"
    monkeypatch.setattr(client, "run_command", lambda argv, limit_s=0.0: Completed(0, said, ""))
    site = Site("mine", "slurm", container=SiteContainer(runtime))
    hazards = SCHEDULER.hazards(site)
    assert [what for what, _ in hazards] == (["proctrack/linuxproc"] if warned else [])
    assert client.max_array_size() == 1001
