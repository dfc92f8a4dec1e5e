"""The status of many runs: the newest are read first, and what is settled is read once."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from hpclm.core.sealed import write_sealed
from hpclm.core.sweep_layout import RunsFolder
from hpclm.runs import listing
from hpclm.runs import submit as submitting
from hpclm.runs.record import Run, find_run, in_order, read_run
from tests.support.harness import CHAIN, prepared
from tests.support.sites import LOCAL

MANY = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty runs that have been complete for an hour, named after the minutes of one."""
    runs = tmp_path / "runs"
    runs.mkdir()
    first = submitting.write(prepared(runs, CHAIN, LOCAL))
    for stage in CHAIN:
        write_sealed(first.paths.stage(stage.name).result, {"task": stage.task, "loss": 0.5})
    text = first.paths.record.read_text()
    created = json.loads(text)["created_at"]
    for minute in range(MANY):
        root = runs / f"tiny-20260101-00{minute:02d}00-{minute:04x}"
        shutil.copytree(first.paths.root, root)
        shifted = text.replace(first.record.run, root.name).replace(f"{created}", f"{created - 3600 + minute}")
        (root / "run.json").write_text(shifted)
    shutil.rmtree(first.paths.root)
    return runs


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are read."""
    names: list[str] = []

    def noted(root: Path) -> Run:
        names.append(root.name)
        return read_run(root)

    monkeypatch.setattr(listing, "read_run", noted)
    return names


def test_the_newest_come_first_and_no_other_is_read(folder: Path, read: list[str]) -> None:
    found = listing.newest(folder, 3)
    names = [f"tiny-20260101-00{minute:02d}00-{minute:04x}" for minute in (57, 58, 59)]
    assert [one.run for one in found.runs] == names == read
    assert found.hidden == MANY - 3
    assert find_run(folder, None).record.run == names[-1]
    assert [root.name for root in in_order(folder)][-3:] == names


def test_settled_runs_are_read_once_and_again_when_they_change(folder: Path, read: list[str]) -> None:
    first = listing.newest(folder, 0)
    assert len(first.runs) == MANY
    assert {one.state for one in first.runs} == {"completed"}
    read.clear()
    assert listing.newest(folder, 0).runs == first.runs
    assert read == []
    changed = in_order(folder)[7]
    record = changed / "run.json"
    record.write_text(record.read_text().replace('"error": null', '"error": "no"'))
    os.utime(record, (time.time(), time.time() + 5))
    assert len(listing.newest(folder, 0).runs) == MANY
    assert read == [changed.name]


@pytest.mark.parametrize("text", ["", "{", '{"version": 1, "runs": {"a": 3}}', '{"version": 99, "runs": []}'])
def test_an_index_in_doubt_is_made_again(folder: Path, text: str) -> None:
    first = listing.newest(folder, 0)
    index = RunsFolder(folder).status_index
    whole = index.read_text()
    index.write_text(text)
    assert listing.newest(folder, 0).runs == first.runs
    assert index.read_text() == whole


def test_a_run_that_is_not_over_or_failed_is_never_in_the_index(folder: Path) -> None:
    open_one = in_order(folder)[0]
    (open_one / "stages" / "ptune" / "result.json").unlink()
    listing.newest(folder, 0)
    assert open_one.name not in json.loads(RunsFolder(folder).status_index.read_text())["runs"]
    assert len(json.loads(RunsFolder(folder).status_index.read_text())["runs"]) == MANY - 1
