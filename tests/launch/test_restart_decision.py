"""The decision after an attempt: restart, requeue or stop; from the files of the ranks and of the preflight check."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.failures import POLICIES, FailureKind
from hpclm.core.files import append_line, write_json
from hpclm.core.layout import StagePaths
from hpclm.core.preflight_report import NodeFinding, PreflightReport, Result
from hpclm.core.records import to_dict
from hpclm.recovery.restart_decision import Decision, decide, read_decision, write_decision
from hpclm.runs import attempt_history

NODES = ("node0", "node1")


class Trial:
    """A stage, to which things happen attempt by attempt."""

    def __init__(self, folder: Path, **recovery: Any) -> None:
        self.stage = StagePaths(folder / "run" / "stages" / "train")
        write_json(self.stage.spec, {"recovery": recovery})
        write_json(folder / "run" / "run.json", {"site": {"name": "mine"}})
        self.count = 0

    def attempt(self, *ranks: dict[str, Any], step: int = 0, ends: float | None = None, **files: Any) -> Decision:
        """One attempt that ended so; the decision on it, which is written down as the job does."""
        here = self.stage.attempt(1, self.count)
        self.count += 1
        here.ranks.mkdir(parents=True)
        here.preflight.mkdir()
        for rank in ranks:
            write_json(here.rank(rank["rank"]), rank)
        for node, checked in files.get("preflight", {}).items():
            write_json(here.preflight_report(node), to_dict(checked))
        if step:
            write_json(self.stage.latest, {"checkpoint": f"step-{step:08d}", "step": step})
        decision = decide(self.stage, here, ends, NODES)
        write_decision(self.stage, here, decision)
        assert read_decision(here) == decision
        return decision

    def line(self) -> str:
        return self.stage.attempt(1, self.count - 1).decision_line.read_text().strip()


def rank(number: int, kind: str | None = None, node: str | None = None, **more: Any) -> dict[str, Any]:
    state = "running" if kind is None else "stopped" if kind == "signal" else "failed"
    return {"rank": number, "node": node or NODES[number % 2], "state": state, "kind": kind, "message": f"{kind}!",
            "ended_at": 100.0 + number, "error_type": "RuntimeError", **more}  # fmt: skip


def report(result: Result, *errors: str) -> PreflightReport:
    return PreflightReport("a node", result, [NodeFinding("error", "a check", error, "node") for error in errors])


OK = report("ok")


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


@pytest.mark.parametrize("kind", ["data", "memory", "error"])
def test_what_would_repeat_is_not_tried_again(trial: Trial, kind: str) -> None:
    decision = trial.attempt(rank(0, "peer-lost"), rank(1, kind))
    assert (decision.action, decision.kind, decision.rank, decision.code) == (
        "stop",
        kind,
        1,
        int(POLICIES[FailureKind(kind)].exit_code),
    )
    assert trial.line() == f"stop {int(POLICIES[FailureKind(kind)].exit_code)}"


@pytest.mark.parametrize("kind", ["stall", "storage", "program", "peer-lost", "no-meeting", None])
def test_what_may_go_better_is_tried_on_the_same_nodes(trial: Trial, kind: str | None) -> None:
    decision = trial.attempt(rank(0, "peer-lost"), rank(1, kind))
    assert (decision.action, decision.exclude) == ("again", ())
    assert trial.line() == "again"


def test_not_for_the_last_minute_of_an_allocation(trial: Trial) -> None:
    assert trial.attempt(rank(0, "storage"), ends=time.time() + 30).action == "requeue"
    assert trial.attempt(rank(0, "storage"), ends=time.time() + 3000, step=5).action == "again"


def test_ranks_that_were_told_to_stop_go_on_in_another_job_and_that_is_free(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_restarts=0, max_without_progress=1)
    for _ in range(5):
        decision = trial.attempt(rank(0, "signal"), rank(1, "signal"))
        assert (decision.action, decision.kind, trial.line()) == ("requeue", "signal", "requeue")


def test_a_broken_device_costs_its_node(trial: Trial) -> None:
    decision = trial.attempt(rank(0, "peer-lost"), rank(1, "hardware", message="CUDA error: uncorrectable ECC"))
    assert (decision.action, decision.exclude, trial.line()) == ("requeue", ("node1",), "requeue node1")
    (line,) = trial.stage.attempt(1, 0).bad_nodes.read_text().splitlines()
    fault = json.loads(line)
    assert (fault["node"], fault["site"], fault["run"], fault["stage"]) == ("node1", "mine", "run", "train")


def test_vanishing_twice_on_one_node_makes_it_the_suspect_but_proves_nothing(trial: Trial) -> None:
    assert trial.attempt(rank(0, "peer-lost"), rank(1), step=5).action == "again"
    decision = trial.attempt(rank(0, "peer-lost"), rank(1), step=9)
    assert (decision.action, decision.exclude) == ("requeue", ("node1",))
    assert "not the first failure on node1" in decision.reason
    assert not trial.stage.attempt(1, 1).bad_nodes.exists()


def test_restarts_are_counted(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_restarts=2)
    assert trial.attempt(rank(0, "storage"), step=1).action == "again"
    assert trial.attempt(rank(0, "storage"), step=2).action == "again"
    decision = trial.attempt(rank(0, "storage"), step=3)
    assert (decision.action, decision.kind, decision.code) == ("stop", "restarts", 41)


def test_attempts_that_save_nothing_are_counted_and_progress_clears_them(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_without_progress=2)
    assert trial.attempt(rank(0, "storage"), step=5).action == "again"
    assert trial.attempt(rank(0, "storage"), step=5).action == "again"
    assert trial.attempt(rank(0, "storage"), step=9).action == "again"
    assert trial.attempt(rank(0, "storage"), step=9).action == "again"
    decision = trial.attempt(rank(0, "storage"), step=9)
    assert (decision.action, decision.kind, decision.code) == ("stop", "no-progress", 42)
    assert "saved no checkpoint after step 9" in decision.reason


def test_a_node_that_fails_the_check_is_left_out_for_good(trial: Trial) -> None:
    sick = report("node", "GPU 3 has 5 uncorrected ECC errors")
    decision = trial.attempt(preflight={"node0": OK, "node1": sick})
    assert (decision.action, decision.exclude) == ("requeue", ("node1",))
    assert decision.reason == "node1: GPU 3 has 5 uncorrected ECC errors"
    assert trial.attempt(rank(0, "peer-lost"), rank(1)).exclude == ("node1",)


def test_so_is_one_that_does_not_answer_it(trial: Trial) -> None:
    decision = trial.attempt(preflight={"node0": OK})
    assert decision.bad == {"node1": "did not respond to the preflight check"}


def test_where_every_node_fails_it_is_not_the_nodes(trial: Trial) -> None:
    sick = report("node", "/data cannot be read here")
    decision = trial.attempt(preflight={"node0": sick, "node1": sick})
    assert (decision.action, decision.kind) == ("stop", "bad-nodes")
    run = report("run", "no torch")
    decision = trial.attempt(preflight={"node0": OK, "node1": run})
    assert (decision.action, decision.kind, decision.reason) == ("stop", "data", "node1: no torch")


def test_bad_nodes_have_a_limit(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_bad_nodes=1)
    sick = report("node")
    assert trial.attempt(preflight={"node0": OK, "node1": sick}).action == "requeue"
    decision = trial.attempt(preflight={"node0": sick, "node1": OK})
    assert (decision.action, decision.kind, decision.code) == ("stop", "bad-nodes", 44)


def test_the_kernels_out_of_memory_handler_is_told_from_a_kill(trial: Trial) -> None:
    trial.stage.job_folder.mkdir(parents=True)
    words = "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM Killed."
    trial.stage.batch_log("12").write_text(words)
    decision = trial.attempt(rank(0, "peer-lost"), rank(1))
    assert (decision.action, decision.kind, decision.code) == ("stop", "memory", 11)


def test_a_hostile_node_name_reaches_neither_shell_nor_bad_node_list(trial: Trial) -> None:
    evil = "node1,$(touch x)\nstop 0"
    decision = trial.attempt(rank(0, "hardware", node=evil))
    assert decision.action == "requeue"
    assert trial.line() == "requeue"
    assert not trial.stage.attempt(1, 0).bad_nodes.exists()


def test_the_story_is_told_attempt_by_attempt(trial: Trial) -> None:
    def tell(event: str, detail: str) -> None:
        name = trial.stage.attempt(1, max(0, trial.count - (event != "start"))).name
        append_line(trial.stage.events, {"at": 1.0, "job": "7", "attempt": name, "event": event, "detail": detail})

    tell("start", "node[0-1]")
    trial.attempt(rank(0, "peer-lost"), rank(1), step=5)
    tell("again", "here")
    tell("start", "node[0-1]")
    trial.attempt(rank(0, "signal"), rank(1, "signal"), step=7)
    tell("requeue", "preemption")
    assert attempt_history.why_again(trial.stage, 1) == "preempted by a job of higher priority; requeued"
    tell("start", "node[2-3]")
    trial.attempt(rank(0, "data"))
    tell("stop", "decision")
    lines = [sentence for _, sentence in attempt_history.sentences(trial.stage, 1)]
    assert lines[0].startswith("attempt 1 on node[0-1]: rank 1 on node1 vanished without an error message")
    assert lines[0].endswith("; restarted on the same nodes")
    assert lines[1] == "attempt 2 on node[0-1]: preempted by a job of higher priority; requeued"
    assert lines[2].endswith("; not restarted")
    ending = attempt_history.ending(trial.stage, 1)
    assert ending is not None
    assert (ending.state, ending.rank) == ("failed", 0)
    assert attempt_history.sentences(trial.stage, 2) == []
