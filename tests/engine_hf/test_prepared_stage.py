"""Rows that a stage of their own tokenises, before one that trains on them has its GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.files import read_object
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import RunPaths, StagePaths
from hpclm.planning import make_plan
from hpclm.planning.plan import Plan
from hpclm.planning.specs import stage_specs
from hpclm.recipe import load
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import losses, result, run
from tests.support.hf_broken_files import hf_recipe, write_hf
from tests.support.samples import DROP

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = {"name": "rows", "task": "prepare-rows", "resources": {"device": "cpu", "devices_per_node": 1}}


def plan_of(folder: Path, rows: dict[str, Any] | None = None, **tune: Any) -> Plan:
    train = {"name": "tune", "task": "fine-tune", "instructions": {"stage": "rows"}, **tune}
    stages = [{**ROWS, **(rows or {})}, train]
    return make_plan(load(write_hf(folder, hf_recipe({"stages": stages, "task": DROP, "engine": DROP}))))


def test_the_stage_that_trains_waits_for_them_and_reads_them_where_they_are(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert not plan.errors
    assert plan.stages[1].depends_on == ("rows",)
    rows, tune = stage_specs(plan, "run", tmp_path / "run")
    assert isinstance(rows, FineTuneStageSpec)
    assert isinstance(tune, FineTuneStageSpec)
    assert (rows.task, rows.data.cache) == ("prepare-rows", None)
    assert tune.data.cache == str(RunPaths(tmp_path / "run").stage("rows").data)
    assert replace(tune.data, cache=None) == rows.data


def test_a_cache_of_many_runs_is_theirs_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"instructions": {"cache": str(tmp_path)}})
    assert not plan.errors
    (_, tune) = stage_specs(plan, "run", tmp_path / "run")
    assert isinstance(tune, FineTuneStageSpec)
    assert tune.data.cache == str(tmp_path)


@pytest.mark.parametrize(
    ("rows", "tune", "key", "what"),
    [
        ({}, {"instructions": {"stage": "rowz"}}, "instructions.stage", "did you mean rows?"),
        ({}, {"instructions": {"stage": "tune"}}, "instructions.stage", "is not an earlier stage"),
        ({}, {"instructions": {"stage": "rows", "max_seq_length": 9}}, "max_seq_length", "write it once"),
        ({"resources": {"device": "cpu", "devices_per_node": 2}}, {}, "resources", "is one process"),
        ({}, {"model": {"checkpoint": "other"}}, "model.checkpoint", "is not the model whose tokenizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, rows: dict[str, Any], tune: dict[str, Any], key: str, what: str
) -> None:
    (tmp_path / "other").symlink_to(tmp_path / "model")
    (found,) = plan_of(tmp_path, rows, **tune).errors
    assert key in found.where
    assert what in found.message


@pytest.mark.slow
def test_training_on_them_tokenises_nothing_and_is_the_same(shop: Workshop) -> None:
    made = run(replace(shop.spec(), task="prepare-rows"))
    assert result(made)["train_rows"]["rows"] == 64
    before = {path: path.stat().st_mtime_ns for path in made.data.rglob("*")}
    spec = shop.spec(ranks=2, data={"cache": str(made.data)})
    paths: StagePaths = run(spec)
    assert losses(paths) == pytest.approx(losses(shop.run()), abs=2e-6)
    assert read_object(paths.prepared_rows) == read_object(made.prepared_rows)
    after = {path: path.stat().st_mtime_ns for path in made.data.rglob("*") if not path.name.endswith(".lock")}
    assert {path: before[path] for path in after if path.is_file()} == {
        path: time for path, time in after.items() if path.is_file()
    }
