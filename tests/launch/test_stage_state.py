"""The state and reason of a stage, from the scheduler's answer and the ranks' files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.files import write_json
from hpclm.core.layout import RunPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.records import from_dict
from hpclm.recovery.rank_failures import first_failure
from hpclm.runs.record import Record, read_run, write_record
from hpclm.runs.stage_state import current_state
from hpclm.runs.submit import _record
from hpclm.schedulers.jobs import JobInfo
from hpclm.schedulers.slurm import client
from tests.support.harness import CHAIN, prepared
from tests.support.sites import SLURM


def rank(number: int, state: str, kind: str = "", ended: float = 0.0, message: str = "") -> dict[str, Any]:
    record = {"rank": number, "node": f"node{number}", "state": state, "started_at": 1000.0}
    if state != "running":
        record |= {"kind": kind, "ended_at": ended, "message": message, "error_type": "ValueError", "where": "x.py:3"}
    return record


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        # The earliest that failed by itself, not the peers it tore down, whoever wrote first.
        (
            [rank(0, "failed", "peer-lost", 5), rank(1, "failed", "error", 7), rank(2, "failed", "error", 6, "worse")],
            (2, "error", "rank 2 on node2: ValueError: worse (x.py:3)"),
        ),
        # A user's mistake has its own place; ours would only confuse.
        ([rank(0, "failed", "data", 5, "a.jsonl:3: no answer")], (0, "data", "rank 0 on node0: a.jsonl:3: no answer")),
        # Nobody failed by itself, so one who vanished did it.
        (
            [rank(0, "failed", "peer-lost", 5), rank(1, "running"), rank(2, "stopped", "signal", 4)],
            (1, "vanished", "rank 1 on node1 vanished without an error message (SIGKILL, out of memory or node loss)"),
        ),
        ([rank(0, "failed", "peer-lost", 5, "gone"), rank(1, "stopped", "signal", 4, "stop requested")],
         (1, "signal", "rank 1 on node1: ValueError: stop requested (x.py:3)")),
        ([rank(0, "done", "ok", 5)], None),
        ([], None),
    ],
)  # fmt: skip
def test_who_failed_first(records: list[dict[str, Any]], expected: tuple[int, str, str] | None) -> None:
    found = first_failure([from_dict(RankReport, one) for one in records])
    assert (found and (found.rank, found.kind, found.reason)) == expected


@pytest.fixture
def record(tmp_path: Path) -> Record:
    made = _record(dataclasses.replace(prepared(tmp_path / "runs", CHAIN, SLURM), problems=()))
    return made.with_submit(
        dataclasses.replace(made.submits[0], job_ids={"pretrain": "1", "ptune": "2", "evaluate": "3"})
    )


def _info(job_id: str, raw: str, reason: str, started: float, ended: float, nodes: str) -> JobInfo:
    """As Slurm's client makes it of an answer."""
    text = "|".join([job_id, raw, reason, "N/A", "N/A", nodes, ""])
    (info,) = client.parse_squeue(text)
    return dataclasses.replace(info, started_at=started, ended_at=ended)


def state_of(
    record: Record,
    root: Path,
    state: str,
    reason: str = "",
    ranks: tuple[dict[str, Any], ...] = (),
    seconds: float = 60,
) -> tuple[str, str]:
    paths = RunPaths(root).stage("pretrain")
    for one in ranks:
        write_json(paths.attempt(1).rank(one["rank"]), one)
    found = current_state(
        record, "pretrain", paths, _info("1", state, reason, 1000.0, 1000.0 + seconds, "node[0-1]"), asked=True
    )
    return found.state, found.reason


def cancelled(record: Record) -> Record:
    return record.with_submit(dataclasses.replace(record.submits[0], cancelled_at=1.0))


def test_ranks_that_stopped_before_the_limit_reached_them_timed_out(record: Record, tmp_path: Path) -> None:
    stopped = (rank(0, "stopped", "signal", 2000, "stop requested"),)
    assert state_of(record, tmp_path, "FAILED", ranks=stopped, seconds=270)[0] == "timeout"
    assert state_of(record, tmp_path, "FAILED", ranks=stopped, seconds=60) == (
        "cancelled",
        "a signal from outside hpclm stopped the ranks",
    )
    assert state_of(cancelled(record), tmp_path, "FAILED", ranks=stopped, seconds=60) == (
        "cancelled",
        "by `hpclm cancel`",
    )


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("PREEMPTED", "", ("preempted", "the scheduler gave its nodes to a job of higher priority")),
        ("NODE_FAIL", "", ("node-fail", "a node of node[0-1] failed or was taken down")),
        ("CANCELLED", "DependencyNeverSatisfied", ("skipped", "a job it depends on did not complete")),
        ("CANCELLED", "", ("cancelled", "outside hpclm (scancel, or an administrator)")),
        ("PENDING", "Resources", ("pending", "waiting for nodes to become free")),
        ("COMPLETED", "", ("failed", "every rank ended without an error, but none wrote result.json")),
        ("OUT_OF_MEMORY", "", ("out-of-memory", "no rank wrote a record")),
        ("FAILED", "NonZeroExitCode", ("failed", "NonZeroExitCode")),
        ("NEW_STATE", "", ("unknown", "the scheduler says NEW_STATE")),
    ],
)
def test_the_schedulers_word(
    record: Record, tmp_path: Path, state: str, reason: str, expected: tuple[str, str]
) -> None:
    assert state_of(record, tmp_path, state, reason) == expected


def test_gpu_memory_has_its_word_whatever_slurm_says(record: Record, tmp_path: Path) -> None:
    full = (rank(0, "failed", "memory", 5, "CUDA out of memory"),)
    assert state_of(record, tmp_path, "FAILED", ranks=full)[0] == "out-of-memory"


def test_a_result_is_a_result_whatever_the_scheduler_says(record: Record, tmp_path: Path) -> None:
    write_json(RunPaths(tmp_path).stage("pretrain").result, {"steps": 1})
    assert state_of(record, tmp_path, "FAILED")[0] == "completed"


def test_a_job_that_nobody_knows_is_unknown_and_not_well(record: Record, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path).stage("pretrain")
    found = current_state(record, "pretrain", paths, None, asked=True)
    assert (found.state, found.reason) == ("unknown", "the scheduler no longer knows job 1, and the job left no record")
    assert current_state(record, "pretrain", paths, None, asked=False).reason == "the scheduler could not be queried"


@pytest.mark.parametrize(
    ("left", "seconds", "expected"),
    [
        ("0 1100 -", 100, "failed"),
        ("30 1280 TERM", 280, "timeout"),
        ("143 1060 TERM", 60, "cancelled"),
        ("1 1060 -", 60, "failed"),
    ],
)
def test_a_forgotten_job_is_known_by_what_its_script_left(
    record: Record, tmp_path: Path, left: str, seconds: float, expected: str
) -> None:
    paths = RunPaths(tmp_path).stage("pretrain")
    write_json(
        paths.attempt(1).rank(0),
        rank(0, "stopped", "signal", 1000 + seconds) if "TERM" in left else rank(0, "done", "ok", 1),
    )
    paths.job_folder.mkdir()
    paths.job_exit("1").write_text(left)
    assert current_state(record, "pretrain", paths, None, asked=True).state == expected


def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert record.root is not None
    paths = RunPaths(Path(record.root))
    paths.root.mkdir(parents=True)
    write_record(paths, record)
    assert read_run(paths.root).record == record
