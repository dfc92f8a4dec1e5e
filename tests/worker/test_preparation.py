"""What one rank prepares for all: the others wait however long it takes, and hear when it fails."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from hpclm.core.errors import PeerError
from hpclm.core.files import write_json
from hpclm.core.layout import AttemptPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.records import to_dict
from hpclm.core.spec import TextData
from hpclm.data.documents import documents, split, text_files
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.ranks.preparation import prepare_on_first_rank


def rank(number: int) -> RankFacts:
    return RankFacts(rank=number, world_size=2, local_rank=number, node_rank=0, node="here", restart=0)


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptPaths:
    paths = AttemptPaths(tmp_path / "001-00")
    paths.ranks.mkdir(parents=True)
    return paths


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def client(store: dist.TCPStore) -> dist.TCPStore:
    return dist.TCPStore("localhost", store.port, is_master=False, wait_for_workers=False)


def refuse() -> None:
    raise AssertionError("rank 1 does no work")


def test_the_others_wait_until_the_first_rank_is_done(attempt: AttemptPaths, store: dist.TCPStore) -> None:
    done: list[str] = []

    def wait() -> None:
        prepare_on_first_rank(client(store), attempt, rank(1), refuse)
        done.append("rank 1")

    def work() -> None:
        time.sleep(0.2)
        done.append("rank 0")

    other = threading.Thread(target=wait, daemon=True)
    other.start()
    prepare_on_first_rank(store, attempt, rank(0), work)
    other.join(60)
    assert done == ["rank 0", "rank 1"]
    # at the shared file system nobody has asked
    assert not list(attempt.ranks.iterdir())


FIRST = """
import sys
import torch.distributed as dist
store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.filterwarnings("ignore")
def test_the_others_hear_that_the_first_rank_failed(attempt: AttemptPaths) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", FIRST]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        port = int(first.stdout.readline())
        others = [
            dist.TCPStore("localhost", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
            for _ in range(3)
        ]
        first.kill()
    with pytest.raises(PeerError, match="rank 0 is gone"):
        prepare_on_first_rank(others[0], attempt, rank(1), refuse)
    for other, state in zip(others[1:], ("failed", "stopped"), strict=True):
        write_json(attempt.rank(0), to_dict(RankReport(0, state=state, message="too little text")))
        with pytest.raises(PeerError, match="too little text"):
            prepare_on_first_rank(other, attempt, rank(1), refuse)


def test_the_first_ranks_own_error_is_raised(attempt: AttemptPaths, store: dist.TCPStore) -> None:
    def fail() -> None:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        prepare_on_first_rank(store, attempt, rank(0), fail)


def test_documents_are_read_one_after_another(tmp_path: Path) -> None:
    """However much text there is, little of it is in memory."""
    line = "the quick brown fox jumps over the lazy dog " * 20 + "\n"
    (tmp_path / "a.txt").write_text(line * 40_000)  # 35 MB
    text = TextData([str(tmp_path / "a.txt")], document="line", validation_fraction=0.1)
    seen: dict[str, int] = {"train": 0, "validation": 0}
    tracemalloc.start()
    for part, document in split(text, documents(text, text_files(text), lambda: None)):
        assert document == line.rstrip("\n")
        seen[part] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == {"train": 36_000, "validation": 4_000}
    assert peak < 20 << 20
