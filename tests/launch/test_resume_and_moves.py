"""A run is changed by one command at a time, whichever folder it is in."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from hpclm.core.errors import HpclmError
from hpclm.core.files import write_json
from hpclm.core.layout import LocalPaths
from hpclm.core.locks import exclusive
from hpclm.core.records import to_dict
from hpclm.core.sealed import read_sealed
from hpclm.core.stage_result import set_aside
from hpclm.data.sources import demo
from hpclm.runs.cancel import cancel
from hpclm.runs.collect import collect
from hpclm.runs.moved_run import settle
from hpclm.runs.record import Run, read_run
from hpclm.runs.resume import resume
from hpclm.runs.status import status_of
from hpclm.runs.submit import Preparer, Request, submit, write
from hpclm.schedulers.local.local_records import LocalJobs
from hpclm.schedulers.local.supervisor import Supervisor
from tests.support.harness import CHAIN, Stage, prepared, until, until_over, use_fake_worker
from tests.support.sites import LOCAL

FAILS = Stage("pretrain", behaviour={"fail": {"rank": 0, "kind": "error", "message": "no"}})


def failed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    stages = (FAILS, *CHAIN[1:])
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(folder / "runs", stages, LOCAL))
    assert until_over(run).state == "failed"
    return read_run(run.paths.root)


def attempts(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("stages/*/attempts/*") if path.is_dir())


def test_two_resumes_at_once_start_a_stage_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = failed(monkeypatch, tmp_path)
    outcomes: list[str] = []

    def again() -> None:
        try:
            resume(run)
            outcomes.append("resumed")
        except HpclmError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("resumed") == 1, outcomes
    assert all("another command" in one or "is not over" in one for one in outcomes if one != "resumed"), outcomes
    assert until_over(read_run(run.paths.root)).state == "completed"
    assert len(read_run(run.paths.root).record.submits) == 2


def test_a_cancel_waits_for_a_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = failed(monkeypatch, tmp_path)
    with exclusive(run.paths.lock, "busy"), pytest.raises(HpclmError, match="another command is resuming"):
        resume(run)
    monkeypatch.setattr("hpclm.runs.cancel._WAIT_S", 0.1)
    with exclusive(run.paths.lock, "busy"), pytest.raises(HpclmError, match="another command is resuming it"):
        cancel(run)


def test_a_moved_run_is_resumed_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = failed(monkeypatch, tmp_path)
    there = tmp_path / "archive" / "elsewhere" / "renamed"
    there.parent.mkdir(parents=True)
    before.paths.root.rename(there)
    run = read_run(there)
    assert status_of([run])[0].state == "failed"
    again, stages = resume(run)
    assert stages == ["pretrain", "ptune", "evaluate"]
    assert until_over(again).state == "completed"
    assert not before.paths.root.exists()
    spec = read_sealed(again.paths.stage("pretrain").spec)
    assert spec is not None
    assert spec["stage_dir"] == str(there / "stages" / "pretrain")
    assert str(before.paths.root) not in (there / "run.json").read_text()
    assert (collect(again).folder / "summary.json").is_file()


def test_a_copy_is_resumed_in_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = failed(monkeypatch, tmp_path)
    kept = {path: path.read_bytes() for path in run.paths.root.rglob("*") if path.is_file()}
    copy = tmp_path / "copies" / run.paths.root.name
    shutil.copytree(run.paths.root, copy)
    with pytest.raises(HpclmError, match=r"is a copy of the run in .*/runs/.*; cancel that one"):
        cancel(read_run(copy))
    again, _ = resume(read_run(copy))
    assert until_over(again).state == "completed"
    assert {path: path.read_bytes() for path in run.paths.root.rglob("*") if path.is_file()} == kept
    assert attempts(copy) == ["001-00", "002-00", "002-00", "002-00"]


def test_a_run_behind_a_link_is_neither_moved_nor_a_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = failed(monkeypatch, tmp_path)
    (tmp_path / "link").symlink_to(run.paths.root.parent)
    through = read_run(tmp_path / "link" / run.paths.root.name)
    assert through.record == run.record
    assert cancel(through) == []


def test_a_damaged_result_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake_worker(monkeypatch, CHAIN)
    run = submit(prepared(tmp_path / "runs", CHAIN, LOCAL))
    assert until_over(run).state == "completed"
    result = run.paths.stage("ptune").result
    whole = result.read_text()
    result.write_text(whole.replace('"loss": 0.5', '"loss": 0.4'))
    (status,) = status_of([run])
    assert status.state == "failed"
    assert "ptune/result.json: damaged (its contents have changed since it was written)" in status.reason
    again, stages = resume(run)
    assert stages == ["ptune"]
    assert until_over(again).state == "completed"
    assert result.read_text() == whole
    assert result.with_name("result.json.damaged").is_file()


def test_a_run_is_cancelled_where_nothing_can_be_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stages = (Stage("pretrain", behaviour={"seconds": 60}),)
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, LOCAL))
    until(run, "pretrain", "running")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(run.paths.record))

    monkeypatch.setattr("hpclm.runs.record.write_record", full)
    assert cancel(read_run(run.paths.root)) == ["pretrain"]
    assert until_over(run).state == "cancelled"


def test_a_moved_run_that_was_cancelled_before_is_resumed_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other commands save the record in between; the specs are settled all the same, and twice changes nothing."""
    before = failed(monkeypatch, tmp_path)
    there = tmp_path / "new" / str(before.paths.root).lstrip("/")  # which ends like the old folder
    there.parent.mkdir(parents=True)
    before.paths.root.rename(there)
    run = read_run(there)
    run.save(run.record)
    for _ in range(2):
        run = settle(read_run(there))
    spec = read_sealed(run.paths.stage("pretrain").spec)
    assert spec is not None
    assert spec["stage_dir"] == str(there / "stages" / "pretrain")
    again, _ = resume(run)
    assert until_over(again).state == "completed"


def test_a_result_that_cannot_be_read_now_is_not_set_aside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake_worker(monkeypatch, CHAIN)
    run = submit(prepared(tmp_path / "runs", CHAIN, LOCAL))
    assert until_over(run).state == "completed"

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("hpclm.core.stage_result.read_sealed", fails)
    with pytest.raises(OSError, match="Input/output"):
        set_aside(run.paths.stage("ptune"))
    assert run.paths.stage("ptune").result.is_file()


@pytest.mark.parametrize("text", ['{"run": ', "", None])
def test_a_damaged_spec_is_written_again_from_the_plan(tmp_path: Path, text: str | None) -> None:
    demo(tmp_path / "demo-data", 1234)
    recipe = tmp_path / "recipes" / "demo.yaml"
    recipe.parent.mkdir()
    shutil.copyfile(Path(__file__).parents[2] / "recipes" / "demo.yaml", recipe)
    (tmp_path / "runs").mkdir()
    run = write(Preparer("local", tmp_path / "runs").prepare(Request(recipe)))
    whole = {stage.name: run.paths.stage(stage.name).spec.read_text() for stage in run.record.stages}
    spec = run.paths.stage("ptune").spec
    if text is None:
        spec.unlink()
    else:
        spec.write_text(text)
    settle(run)
    assert {stage.name: run.paths.stage(stage.name).spec.read_text() for stage in run.record.stages} == whole
    spec.write_text("{")
    run.paths.plan.write_text("{}")
    with pytest.raises(HpclmError, match=r"spec.json: damaged, and .*plan.json does not have it"):
        settle(run)


def test_the_supervisor_makes_no_folder_where_a_run_has_been(tmp_path: Path) -> None:
    """A run is over with its last stage; its supervisor then has a word to write."""
    paths = LocalPaths(tmp_path / "run" / "local" / "1")
    write_json(paths.jobs, to_dict(LocalJobs([], 1.0, 1.0)))
    supervisor = Supervisor(paths)
    (tmp_path / "run").rename(tmp_path / "moved")
    supervisor.run()
    assert not (tmp_path / "run").exists()
