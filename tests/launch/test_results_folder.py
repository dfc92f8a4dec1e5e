"""Collecting replaces nothing of the user's, and verifies what it gathers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from hpclm.core.errors import HpclmError, IncompleteError
from hpclm.runs.collect import collect
from hpclm.runs.record import Run
from tests.launch.test_collect import run  # noqa: F401 - a fixture
from tests.support.checkpoints import SHARD


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_collecting_again_replaces_what_a_collect_of_this_run_made(run: Run, tmp_path: Path) -> None:  # noqa: F811
    first = everything(collect(run, out=tmp_path / "gathered").folder)
    assert everything(collect(run, out=tmp_path / "gathered").folder) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gathered", "runs"]


@pytest.mark.parametrize("mine", ["thesis.tex", "summary.json", "stages/notes.txt"])
def test_a_folder_with_files_of_the_user_is_refused_and_kept(run: Run, tmp_path: Path, mine: str) -> None:  # noqa: F811
    folder = tmp_path / "mine"
    (folder / mine).parent.mkdir(parents=True)
    (folder / mine).write_text('{"run": "another"}')
    with pytest.raises(HpclmError, match=r"mine was not made by a collect of run .*; choose a new or empty folder"):
        collect(run, out=folder)
    assert everything(folder) == {mine: b'{"run": "another"}'}


def test_a_file_that_the_user_put_among_the_results_is_kept(run: Run, tmp_path: Path) -> None:  # noqa: F811
    folder = collect(run, out=tmp_path / "gathered").folder
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(HpclmError, match=r"contains notes.txt, which `hpclm collect` did not write"):
        collect(run, out=folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_results_of_an_earlier_version_in_the_run_are_replaced(run: Run) -> None:  # noqa: F811
    run.paths.results.mkdir()
    (run.paths.results / "summary.json").write_text(json.dumps({"run": run.record.run}))
    assert (collect(run).folder / "summary.md").is_file()


def test_two_collects_at_once_both_end_well(run: Run, tmp_path: Path) -> None:  # noqa: F811
    failures: list[BaseException] = []

    def gather() -> None:
        try:
            for _ in range(10):
                collect(run, out=tmp_path / "gathered", pred_file=tmp_path / "pred.txt")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=gather) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gathered", "pred.txt", "pred.txt.jsonl", "runs"]
    assert len((tmp_path / "gathered" / "test-results.txt").read_text().splitlines()) == 4


def test_a_device_and_a_pipe_are_written_to(run: Run, tmp_path: Path) -> None:  # noqa: F811
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    collect(run, pred_file=pipe)
    reader.join()
    assert got[0].splitlines() == ["q0 = a0 b", "q1 = a1 b", "q2 = a2 b", "q3 = a3 b"]
    assert pipe.is_fifo()
    before = Path(os.devnull).stat()
    collect(run, pred_file=Path(os.devnull))
    assert Path(os.devnull).stat().st_rdev == before.st_rdev
    assert not Path(f"{os.devnull}.jsonl").exists()


def test_a_link_is_followed(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "place").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "place" / "target.txt")
    collect(run, pred_file=tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert len((tmp_path / "place" / "target.txt").read_text().splitlines()) == 4


@pytest.mark.parametrize("bad", ["folder", "file/pred.txt", "loop"])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_replaced(
    run: Run,  # noqa: F811
    tmp_path: Path,
    bad: str,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    folder = collect(run, out=tmp_path / "gathered").folder
    before = folder.stat().st_ino
    with pytest.raises(HpclmError, match=bad.partition("/")[0]):
        collect(run, out=folder, pred_file=tmp_path / bad)
    assert folder.stat().st_ino == before


def test_a_damaged_checkpoint_is_not_gathered(run: Run) -> None:  # noqa: F811
    shard = run.paths.stage("ptune").checkpoint(20) / SHARD
    shard.write_bytes(b"21")
    with pytest.raises(IncompleteError, match=r"stage ptune: .*contents have changed.*damaged"):
        collect(run)
    shard.unlink()
    with pytest.raises(IncompleteError, match=r"stage ptune: .*missing"):
        collect(run)
    assert not run.paths.results.exists()


@pytest.mark.parametrize("text", ['{"task": "evaluate", "exam', "", "[]", "\0" * 100])
def test_a_truncated_result_is_not_a_complete_stage(run: Run, text: str) -> None:  # noqa: F811
    run.paths.stage("pretrain").result.write_text(text)
    with pytest.raises(IncompleteError, match=r"stage pretrain is failed \(.*result.json: damaged .*`hpclm resume`"):
        collect(run)


def test_earlier_results_stay_where_the_new_ones_cannot_take_their_place(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a file system that fails between the two renames."""
    folder = collect(run, out=tmp_path / "gathered").folder
    before = everything(folder)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == folder and "earlier" not in self.name:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="cross-device"):
        collect(run, out=folder)
    assert everything(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gathered", "runs"]


def test_a_folder_behind_a_link_is_replaced_where_it_is(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "scratch" / "there").mkdir(parents=True)
    (tmp_path / "results").symlink_to(tmp_path / "scratch" / "there")
    for _ in range(2):
        collect(run, out=tmp_path / "results")
    assert (tmp_path / "results").is_symlink()
    assert (tmp_path / "scratch" / "there" / "summary.json").is_file()


def test_the_prediction_file_is_not_among_the_results(run: Run, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(HpclmError, match=r"which gets the predictions as test-results\.txt"):
        collect(run, out=tmp_path / "out", pred_file=tmp_path / "out" / "mine.txt")
    assert not (tmp_path / "out").exists()
