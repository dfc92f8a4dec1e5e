"""A rank without progress: it is stopped, its stack is saved, and it reports whether it
was stuck or waited for others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpclm.core.exit_codes import ExitCode
from hpclm.core.layout import AttemptPaths
from hpclm.worker import stall_watch
from tests.support.processes import LIMIT_S, ROOT, Child, start
from tests.support.waiting import wait_until

RANK = """
import sys, time
from pathlib import Path
from hpclm.core.layout import AttemptPaths
from hpclm.core import heartbeat
from hpclm.worker.rank_identity import RankFacts
from hpclm.core.errors import PeerError
from hpclm.worker.report import RankRecord
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


def start_rank(folder: Path, rank: int, timeout_s: float, what: str) -> Child:
    """A rank that does `what`. `with` ends it: what a failed test leaves running would keep the tests' output open."""
    argv: list[str | Path] = [sys.executable, "-c", RANK, folder, str(rank), str(timeout_s), what]
    return start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until_begun(process: Child, folder: Path, rank: int) -> None:
    def begun() -> bool:
        assert process.poll() is None, "the rank ended before it began"
        return AttemptPaths(folder).rank(rank).exists()

    wait_until(f"rank {rank} to begin", begun, pause_s=0.01)


def record(folder: Path, rank: int) -> dict[str, object]:
    found: dict[str, object] = json.loads(AttemptPaths(folder).rank(rank).read_text())
    return found


def test_a_hang_is_noticed_and_its_stack_is_left(tmp_path: Path) -> None:
    with start_rank(tmp_path, 0, 0.5, "computing_for_ever()") as process:
        assert process.wait(LIMIT_S) == ExitCode.STALL
    left = record(tmp_path, 0)
    assert (left["state"], left["kind"], left["exit_code"]) == ("failed", "stall", ExitCode.STALL)
    stack = AttemptPaths(tmp_path).stack(0).read_text()
    assert "computing_for_ever" in stack
    assert str(AttemptPaths(tmp_path).stack(0)) in str(left["message"])


def test_one_that_waits_for_others_says_so(tmp_path: Path) -> None:
    what = (
        "import types; code = compile('while True: time.sleep(0.01)', '/x/torch/distributed/y.py', 'exec'); exec(code)"
    )
    with start_rank(tmp_path, 1, 0.5, what) as process:
        assert process.wait(LIMIT_S) == ExitCode.STALL
    assert record(tmp_path, 1)["kind"] == "waited"


# The time-out is ten times the pause between two beats, so that a busy machine delays none beyond it.
@pytest.mark.parametrize("what", ["working()", "pass"])
def test_work_and_its_end_are_no_hang(tmp_path: Path, what: str) -> None:
    with start_rank(tmp_path, 0, 1.0, what) as process:
        assert process.wait(LIMIT_S) == 0
    assert record(tmp_path, 0)["state"] == "done"


def test_a_rank_that_was_stopped_is_the_one_the_others_waited_for(tmp_path: Path) -> None:
    """It goes on when the job ends it, and finds the others gone before it can notice that it stood still."""
    # it must be stopped before its two seconds are over, and for more than half of the time-out
    what = "time.sleep(2.0); sys.exit(record.finish(PeerError('gone'), watch.stood_still_s()))"
    with start_rank(tmp_path, 1, 4.0, what) as process:
        until_begun(process, tmp_path, 1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT_S) == ExitCode.STALL
    left = record(tmp_path, 1)
    assert left["kind"] == "stall"
    assert "did not run at all for" in str(left["message"])


def test_ranks_are_patient_while_rank_0_works_alone(tmp_path: Path) -> None:
    """As when it makes tokens of a corpus, and all others wait in one collective."""
    working = "while not Path(sys.argv[1], 'enough').exists(): time.sleep(0.1); heartbeat.beat()"
    with start_rank(tmp_path, 0, 1.0, working) as alone:
        wait_until("a sign of rank 0", lambda: AttemptPaths(tmp_path).heartbeat.exists())
        with start_rank(tmp_path, 1, 1.0, "computing_for_ever()") as waiting:
            until_begun(waiting, tmp_path, 1)
            time.sleep(2.5)  # more than two time-outs
            assert waiting.poll() is None
            (tmp_path / "enough").touch()
            assert alone.wait(LIMIT_S) == 0
            assert waiting.wait(LIMIT_S) == ExitCode.STALL


def test_the_files_that_ranks_wait_in_are_there() -> None:
    ours = [part for part in stall_watch._WAITING if part.startswith("hpclm/")]
    assert ours
    assert all((ROOT / f"{part}.py").is_file() for part in ours)
