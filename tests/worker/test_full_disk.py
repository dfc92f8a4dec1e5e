"""A full disk: training goes on, saving waits, and what is said names the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from hpclm.core import storage
from hpclm.core.layout import RunPaths
from hpclm.recovery.restart_decision import decide
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.report import Progress, RankRecord, classify

FULL = OSError(errno.ENOSPC, "No space left on device", "/runs/x")


def full(*_: object, **__: object) -> None:
    raise FULL


def test_progress_that_cannot_be_written_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(tmp_path / "progress.json", tmp_path / "metrics.jsonl", active=True)
    monkeypatch.setattr("hpclm.worker.report.write_json", full)
    monkeypatch.setattr("hpclm.worker.report.append_line", full)
    for step in range(3):
        progress.update(step=step, force=True)
        progress.metric("train", step, {"loss": 1.0})
    assert capsys.readouterr().err.count("No space left on device: '/runs/x'") == 1


def test_the_last_words_are_on_standard_error_and_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node"))
    path = RunPaths(tmp_path / "run-1").stage("train").attempt(1).rank(3)
    path.parent.parent.mkdir(parents=True)
    path.parent.touch()  # nothing can be written below it
    record = RankRecord(path, RankFacts(rank=3, world_size=4, local_rank=3, node_rank=0, node="n0", restart=0))
    assert record.finish(ValueError("the loss is purple")) == 1
    assert "the loss is purple" in capsys.readouterr().err
    (kept,) = (tmp_path / "node").rglob("*.json")
    assert "the loss is purple" in kept.read_text()
    assert kept.name == "run-1-train-001-00-00003.json"


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError(
            'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left" }'
        ),
        RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed: file write failed"),
    ],
    ids=str,
)
def test_a_disk_that_takes_nothing_is_a_kind_of_failure(error: Exception) -> None:
    assert classify(error) == "disk"


def test_saving_waits_for_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    left = [FULL, FULL]

    def save() -> str:
        if left:
            raise left.pop()
        return "saved"

    assert storage.when_there_is_room(save, tmp_path) == "saved"
    assert sum(slept) == 15
    left.extend([FULL] * 20)
    with pytest.raises(OSError, match="No space left"):
        storage.when_there_is_room(save, tmp_path)
    assert sum(slept) < 400

    def other() -> None:
        raise ValueError("not about space")

    with pytest.raises(ValueError, match="not about space"):
        storage.when_there_is_room(other, tmp_path)


def test_the_decision_names_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = RunPaths(tmp_path).stage("train")
    attempt = stage.attempt(1)
    attempt.ranks.mkdir(parents=True)
    monkeypatch.setattr(Path, "write_bytes", full)
    decision = decide(stage, attempt, None, ("n0",))
    assert (decision.kind, decision.action, decision.code) == ("disk", "stop", 49)
    assert decision.reason == f"{stage.root}: No space left on device"
