"""A rank that gets nowhere: it is ended, its stack is left, and it says whether it was stuck or waited for others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpclm.core.layout import AttemptPaths
from hpclm.worker.report import EXIT_STALL

RANK = """
import sys, time
from pathlib import Path
from hpclm.core.layout import AttemptPaths
from hpclm.core import heartbeat
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.report import PeerError, RankRecord
from hpclm.worker.stall_watch import StallWatch

paths, rank, timeout = AttemptPaths(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
record = RankRecord(paths.rank(rank), RankFacts(rank, 2, 0, 0, "node0", 0))
watch = StallWatch(record, paths, rank, timeout)
watch.start()

def computing_for_ever():
    while True:
        time.sleep(0.01)

def working():
    for _ in range(20):
        time.sleep(0.1)
        heartbeat.beat()

exec(sys.argv[4])
watch.stop()
time.sleep(2 * timeout)
record.finish(None)
assert "torch" not in sys.modules
"""


def start(folder: Path, rank: int, timeout_s: float, what: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", RANK, str(folder), str(rank), str(timeout_s), what]
    return subprocess.Popen(argv, stderr=subprocess.DEVNULL)


def record(folder: Path, rank: int) -> dict[str, object]:
    found: dict[str, object] = json.loads(AttemptPaths(folder).rank(rank).read_text())
    return found


def test_a_hang_is_noticed_and_its_stack_is_left(tmp_path: Path) -> None:
    began = time.monotonic()
    process = start(tmp_path, 0, 0.5, "computing_for_ever()")
    assert process.wait(20) == EXIT_STALL
    assert time.monotonic() - began < 10
    left = record(tmp_path, 0)
    assert (left["state"], left["kind"], left["exit_code"]) == ("failed", "stall", EXIT_STALL)
    stack = AttemptPaths(tmp_path).stack(0).read_text()
    assert "computing_for_ever" in stack
    assert str(AttemptPaths(tmp_path).stack(0)) in str(left["message"])


def test_one_that_waits_for_others_says_so(tmp_path: Path) -> None:
    what = (
        "import types; code = compile('while True: time.sleep(0.01)', '/x/torch/distributed/y.py', 'exec'); exec(code)"
    )
    assert start(tmp_path, 1, 0.5, what).wait(20) == EXIT_STALL
    assert record(tmp_path, 1)["kind"] == "waited"


@pytest.mark.parametrize("what", ["working()", "pass"])
def test_work_and_its_end_are_no_hang(tmp_path: Path, what: str) -> None:
    process = start(tmp_path, 0, 0.5, what)
    assert process.wait(20) == 0
    assert record(tmp_path, 0)["state"] == "done"


def test_a_rank_that_was_stopped_is_the_one_the_others_waited_for(tmp_path: Path) -> None:
    """It goes on when the job ends it, and finds the others gone before it can notice that it stood still."""
    what = "time.sleep(1.0); sys.exit(record.finish(PeerError('gone'), watch.stood_still_s()))"
    process = start(tmp_path, 1, 4.0, what)
    until = time.monotonic() + 60
    while not AttemptPaths(tmp_path).rank(1).exists():
        assert process.poll() is None, "the rank ended before it began"
        assert time.monotonic() < until, "the rank did not begin"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(20) == EXIT_STALL
    left = record(tmp_path, 1)
    assert left["kind"] == "stall"
    assert "did not run at all for" in str(left["message"])


def test_ranks_are_patient_while_rank_0_works_alone(tmp_path: Path) -> None:
    """As when it makes tokens of a corpus, and all others wait in one collective."""
    waiting = start(tmp_path, 1, 1.0, "computing_for_ever()")
    alone = start(tmp_path, 0, 1.0, "working(); working()")
    time.sleep(3.0)
    assert waiting.poll() is None
    assert alone.wait(20) == 0
    assert waiting.wait(20) == EXIT_STALL
