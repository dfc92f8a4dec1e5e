"""Runs of version 0.1: `run_of_version_1` is what that version wrote for the demo, its paths replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.core.errors import HpclmError
from hpclm.core.layout import RunPaths
from hpclm.core.records import from_dict
from hpclm.core.sealed import read_sealed
from hpclm.core.spec import StageSpec
from hpclm.planning.megatron_memory import memory
from hpclm.runs.record import VERSION, Run, read_run
from hpclm.runs.upgrade import upgrade

WRITTEN = Path(__file__).with_name("run_of_version_1")


@pytest.fixture
def old(tmp_path: Path) -> RunPaths:
    """The run with a finished pre-training, as far as `status` and `resume` look at it."""
    paths = RunPaths(tmp_path / "runs" / "old-run")
    for name in ("pretrain", "ptune"):
        spec = paths.stage(name).spec
        spec.parent.mkdir(parents=True)
        spec.write_text(filled(WRITTEN / f"{name}.json", paths))
    paths.record.write_text(filled(WRITTEN / "run.json", paths))
    (paths.payload / "hpclm").mkdir(parents=True)
    (paths.payload / "hpclm" / "of_then.py").touch()
    return paths


def filled(template: Path, paths: RunPaths) -> str:
    text = template.read_text()
    for word, value in (("@RUN@", paths.root), ("@RUNS@", paths.root.parent), ("@CHECKOUT@", paths.root.parents[1])):
        text = text.replace(word, str(value))
    return text


def test_it_is_listed_under_its_name(old: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["status", "--runs-dir", str(old.root.parent), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["run"] == "old-run"


def test_its_bad_node_list_is_found(old: RunPaths) -> None:
    job = read_run(old.root).record.stages[0].job
    assert job.bad_node_list == str(old.root.parent / "nodes.jsonl")


def test_resumed_it_has_the_code_and_specs_of_today(old: RunPaths) -> None:
    before = read_run(old.root)
    assert before.record.version == 1
    after = upgrade(before)
    assert after.record.version == read_run(old.root).record.version == VERSION
    assert (old.payload / "hpclm" / "core" / "layout.py").is_file()
    assert not (old.payload / "hpclm" / "of_then.py").exists()
    assert (old.root / ".payload-of-version-1" / "hpclm" / "of_then.py").is_file()
    for stage in after.record.stages:
        spec = from_dict(StageSpec, read_sealed(old.stage(stage.name).spec))
        estimate = memory(spec)
        assert estimate is not None
        assert spec.needs.memory_bytes == estimate.total
        assert stage.job.packages == tuple(spec.needs.packages)
    train = from_dict(StageSpec, read_sealed(old.stage("ptune").spec))
    assert [Path(one).name for one in train.needs.inputs] == ["train.jsonl", "validation.jsonl"]
    assert upgrade(after) == after


def test_a_spec_that_cannot_be_read_is_one_message_and_changes_nothing(old: RunPaths) -> None:
    spec = old.stage("ptune").spec
    spec.write_text(spec.read_text().replace('"lr": ', '"learning_rate": '))
    before = everything(old)
    with pytest.raises(HpclmError, match=r"ptune/spec.json: cannot be read by this version.*start a new run"):
        upgrade(Run(old, read_run(old.root).record))
    assert everything(old) == before


def everything(paths: RunPaths) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()}
