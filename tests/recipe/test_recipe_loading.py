"""Stages inherit, `--set` lays over, places follow, and the login side stays light."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.core.errors import RecipeError
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.spec import StageSpec
from hpclm.planning import make_plan
from hpclm.recipe import load
from tests.support.processes import python
from tests.support.samples import changed, single, write, write_checkpoint

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_a_stage_lies_over_the_top_level(tmp_path: Path) -> None:
    recipe = changed(
        ("stages.1.optim", {"lr": 0.5}),
        ("stages.1.trainer", {"max_epochs": 3}),
        ("stages.1.data", {"train": ["validation.jsonl"]}),
    )
    loaded = load(write(tmp_path, recipe))
    pretrain, ptune, _ = (stage.recipe for stage in loaded.stages)
    assert pretrain.optim is not None
    assert ptune.optim is not None
    assert (pretrain.optim.lr, ptune.optim.lr) == (0.001, 0.5)
    assert ptune.optim.schedule.warmup_steps == 2
    assert pretrain.trainer is not None
    assert ptune.trainer is not None
    assert (pretrain.trainer.max_steps, pretrain.trainer.max_epochs) == (10, None)
    assert (ptune.trainer.max_steps, ptune.trainer.max_epochs) == (None, 3)
    assert ptune.data is not None
    assert ptune.data.train == (str(tmp_path / "validation.jsonl"),)
    assert ptune.data.max_seq_length == 48


def test_places_are_where_the_value_was_written(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("stages.1.optim", {"lr": 0.5})))
    lines = path.read_text().splitlines()
    loaded = load(path, ["stages.evaluate.parallel.tensor=1"])
    pretrain, ptune, evaluate = loaded.stages

    def line(text: str) -> int:
        return lines.index(text) + 1

    assert pretrain.where("optim", "lr") == f"{path}:{line('  lr: 0.001')} optim.lr"
    assert ptune.where("optim", "lr") == f"{path}:{line('    lr: 0.5')} stages.ptune.optim.lr"
    assert ptune.where("optim", "schedule", "warmup_steps").endswith(" optim.schedule.warmup_steps")
    assert ptune.where("optim", "min_lr") == f"{path}:{line('  optim:')} stages.ptune.optim.min_lr"
    assert evaluate.where("parallel", "tensor") == "--set stages.evaluate.parallel.tensor=1"
    assert evaluate.where("parallel", "pipeline") == f"{path}:{line('parallel:')} parallel.pipeline"


def test_set_of_the_top_level_reaches_the_stages_that_inherit(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("stages.1.optim", {"lr": 0.5})))
    loaded = load(path, ["optim.lr=0.25", "optim.betas=[0.5, 0.75]"])
    rates = [stage.recipe.optim.lr for stage in loaded.stages if stage.recipe.optim]
    assert rates == [0.25, 0.5, 0.25]
    assert all(stage.recipe.optim and stage.recipe.optim.betas == (0.5, 0.75) for stage in loaded.stages)


def test_set_values_are_typed_as_yaml(tmp_path: Path) -> None:
    overrides = [
        "optim.lr=1e-3",
        "parallel.sequence=true",
        "trainer.val_batches=null",
        "trainer.val_check_interval=5",
        'task_templates.first.prompt_template="<|VIRTUAL_PROMPT_0|> {words}: {answer}"',
        "task_templates.0.total_virtual_tokens=8",
        "task_templates.0.virtual_token_splits=[8]",
        "data.test=[train.jsonl, test.jsonl]",
        "checkpoint.save_interval_steps=7",
        "name=other",
    ]
    loaded = load(write(tmp_path, changed()), overrides)
    stage = loaded.stages[1].recipe
    assert loaded.name == "other"
    assert stage.optim is not None
    assert stage.optim.lr == 0.001
    assert stage.parallel.sequence is True
    assert stage.trainer is not None
    assert stage.trainer.val_check_interval == 5
    assert type(stage.trainer.val_check_interval) is int
    assert stage.task_templates is not None
    assert stage.task_templates[0].prompt_template == "<|VIRTUAL_PROMPT_0|> {words}: {answer}"
    assert stage.task_templates[0].virtual_token_splits == (8,)
    assert stage.data is not None
    assert len(stage.data.test) == 2
    assert stage.checkpoint.save_interval_steps == 7


def test_set_of_one_way_puts_the_other_aside(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, changed()), ["trainer.max_epochs=2", "tokenizer.tokenizer_file=t.json"])
    stage = loaded.stages[0].recipe
    assert stage.trainer is not None
    assert (stage.trainer.max_steps, stage.trainer.max_epochs) == (None, 2)
    assert stage.tokenizer is not None
    assert stage.tokenizer.train is None


def test_a_stage_whose_name_holds_dots_can_be_set(tmp_path: Path) -> None:
    recipe = changed(("stages.1.name", "tune.v1"), ("stages.2.prompts", "tune.v1"))
    loaded = load(write(tmp_path, recipe), ["stages.tune.v1.optim.lr=0.125"])
    assert loaded.stages[1].recipe.optim is not None
    assert loaded.stages[1].recipe.optim.lr == 0.125


def test_a_stage_can_change_an_entry_of_an_inherited_list(tmp_path: Path) -> None:
    overrides = ["stages.ptune.task_templates.first.answer_only_loss=false", "stages.ptune.data.train.0=test.jsonl"]
    _, ptune, evaluate = load(write(tmp_path, changed()), overrides).stages
    assert ptune.recipe.task_templates is not None
    assert evaluate.recipe.task_templates is not None
    assert not ptune.recipe.task_templates[0].answer_only_loss
    assert evaluate.recipe.task_templates[0].answer_only_loss
    assert ptune.recipe.data is not None
    assert ptune.recipe.data.train == (str(tmp_path / "test.jsonl"),)


def test_nodes_and_devices_stand_for_their_keys(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, changed()), nodes=4, devices_per_node=8)
    assert all(
        (stage.recipe.resources.nodes, stage.recipe.resources.devices_per_node) == (4, 8) for stage in loaded.stages
    )
    with pytest.raises(RecipeError, match="--nodes 0: 0 is out of range; choose at least 1"):
        load(write(tmp_path, changed()), nodes=0)
    with pytest.raises(RecipeError, match=r"already set by --set resources\.nodes=2"):
        load(write(tmp_path, changed()), ["resources.nodes=2"], nodes=4)


def test_the_resolved_recipe_is_itself_a_recipe(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, changed()), ["optim.lr=0.25"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "resolved.json").write_text(json.dumps(loaded.resolved()))
    again = load(elsewhere / "resolved.json")
    assert again.resolved() == loaded.resolved()
    first, second = make_plan(loaded).to_dict(), make_plan(again).to_dict()
    assert first["stages"] == second["stages"]


def test_a_single_stage_is_called_by_its_task(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    loaded = load(write(tmp_path, single()))
    assert [stage.recipe.name for stage in loaded.stages] == ["p-tuning"]
    assert not make_plan(loaded).errors


def test_recipes_are_immutable(tmp_path: Path) -> None:
    stage = load(write(tmp_path, changed())).stages[0].recipe
    with pytest.raises(ValueError, match="frozen"):
        stage.parallel.tensor = 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_lack_nothing_but_the_users_own_files(path: Path) -> None:
    plan = make_plan(load(path))
    allowed = {"data exists", "text exists", "checkpoint exists", "tokenizer exists", "indexed data exists"}
    assert {finding.rule for finding in plan.errors} <= allowed
    assert all(stage.parallel is not None for stage in plan.stages)
    assert all(
        isinstance(stage.spec, StageSpec | FineTuneStageSpec) for stage in plan.stages if stage.task != "program"
    )
    unseen = make_plan(load(path), files=False)
    assert all(stage.program is not None for stage in unseen.stages if stage.task == "program"), unseen.errors


def test_loading_and_planning_import_no_engine_and_are_quick(tmp_path: Path) -> None:
    path = write(tmp_path, changed())
    code = (
        "import sys, time\n"
        "from hpclm.recipe import load\nfrom hpclm.planning import make_plan, picture\n"
        f"picture(make_plan(load({str(path)!r})))\n"
        "print(time.process_time())\n"
        "heavy = {'torch', 'numpy', 'megatron', 'transformers', 'tokenizers', 'rich', 'typer', 'submitit'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    # CPU time of the whole process: a busy machine makes it wait, which is not counted. 0.3 s on two cores of a Xeon.
    assert min(float(python("-c", code, check=True).stdout) for _ in range(3)) < 1


def test_a_rank_gets_its_contract_without_pydantic_or_yaml() -> None:
    code = "import sys, hpclm.core.spec; assert not {'pydantic', 'yaml', 'hpclm.recipe'} & set(sys.modules)"
    python("-c", code, check=True)


def test_planning_is_standard_library_only() -> None:
    code = (
        "import importlib, pkgutil, sys, hpclm.planning\n"
        "for module in pkgutil.walk_packages(hpclm.planning.__path__, 'hpclm.planning.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert not {'pydantic', 'yaml', 'hpclm.recipe'} & set(sys.modules)\n"
    )
    python("-c", code, check=True)
