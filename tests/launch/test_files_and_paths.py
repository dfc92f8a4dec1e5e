"""Small files are whole or absent, and what the ranks import is standard library only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpclm.core import files
from hpclm.core.layout import RunPaths, attempt_name
from tests.support.processes import python


def test_a_reader_never_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})

    def crash(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_numbers_json_cannot_hold_become_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"loss": float("nan"), "list": [float("inf"), 1.5], "n": 3})
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": None, "list": [None, 1.5], "n": 3}


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, {"step": 1})
    files.append_line(path, {"step": 2})
    with path.open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert [row["step"] for row in files.read_lines(path)] == [1, 2]


def test_absent_and_torn_objects_are_none(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[1]")
    assert files.read_object(tmp_path / "absent.json") is None
    assert files.read_object(tmp_path / "torn.json") is None
    assert files.read_object(tmp_path / "list.json") is None


def test_attempts_sort_by_submit_then_restart(tmp_path: Path) -> None:
    stage = RunPaths(tmp_path / "run").stage("train")
    assert stage.latest_attempt() is None
    for submit, restart in ((1, 0), (2, 0), (2, 10), (2, 9)):
        stage.attempt(submit, restart).root.mkdir(parents=True)
    latest = stage.latest_attempt()
    first = stage.latest_attempt(1)
    assert latest is not None
    assert latest.name == "002-10"
    assert latest.submit == 2
    assert first is not None
    assert first.name == "001-00" == attempt_name("001")


def test_what_a_rank_imports_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import hpclm.core.layout, hpclm.core.files, hpclm.schedulers.local.supervisor, hpclm.core.processes\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = python("-c", code, check=True)
    assert done.stdout.split() == ["hpclm"]
