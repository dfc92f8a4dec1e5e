"""What one rank prepares for all: the others wait however long it takes, and hear when it fails."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import pytest

from hpclm.core.errors import PeerError
from hpclm.core.files import write_json
from hpclm.core.layout import AttemptPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.records import to_dict
from hpclm.core.spec import TextData
from hpclm.data.documents import documents, split, text_files
from hpclm.worker import preparation
from hpclm.worker.preparation import prepare_on_first_rank
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.report import RendezvousError


def rank(number: int) -> RankFacts:
    return RankFacts(rank=number, world_size=2, local_rank=number, node_rank=0, node="here", restart=0)


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptPaths:
    paths = AttemptPaths(tmp_path / "001-00")
    paths.ranks.mkdir(parents=True)
    return paths


def refuse() -> None:
    raise AssertionError("rank 1 does no work")


def test_the_others_wait_until_the_first_rank_is_done(attempt: AttemptPaths) -> None:
    done: list[str] = []

    def wait() -> None:
        prepare_on_first_rank(attempt, rank(1), refuse)
        done.append("rank 1")

    other = threading.Thread(target=wait, daemon=True)
    other.start()
    write_json(attempt.rank(0), to_dict(RankReport(0)))
    assert not done
    prepare_on_first_rank(attempt, rank(0), lambda: done.append("rank 0"))
    other.join(60)
    assert done == ["rank 0", "rank 1"]


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_the_others_hear_that_the_first_rank_failed(attempt: AttemptPaths, state: str) -> None:
    write_json(attempt.rank(0), to_dict(RankReport(0, state=state, message="too little text")))
    with pytest.raises(PeerError, match="too little text"):
        prepare_on_first_rank(attempt, rank(1), refuse)


def test_a_first_rank_that_never_starts_is_named(attempt: AttemptPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_START_S", 0.2)
    with pytest.raises(RendezvousError, match="rank 0 did not start"):
        prepare_on_first_rank(attempt, rank(1), refuse)


def test_the_first_ranks_own_error_is_raised(attempt: AttemptPaths) -> None:
    def fail() -> None:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        prepare_on_first_rank(attempt, rank(0), fail)


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
