"""Stages find each other's output, and the specs say what the recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.errors import PlanError
from hpclm.core.records import from_dict, to_dict
from hpclm.core.spec import ModelSpec, StageSpec
from hpclm.planning import make_plan, stage_specs
from hpclm.recipe import load
from tests.support.samples import ROW, changed, single, write, write_checkpoint


def specs_of(folder: Path, recipe: dict[str, Any], overrides: tuple[str, ...] = ()) -> list[StageSpec]:
    specs = stage_specs(make_plan(load(write(folder, recipe), overrides)), "run-1", folder / "run-1")
    found = [spec for spec in specs if isinstance(spec, StageSpec)]
    assert len(found) == len(specs)
    return found


def test_stages_depend_on_what_they_name(tmp_path: Path) -> None:
    plan = make_plan(load(write(tmp_path, changed())))
    assert [stage.depends_on for stage in plan.stages] == [(), ("pretrain",), ("pretrain", "ptune")]


def test_specs_point_at_earlier_output_and_are_absolute(tmp_path: Path) -> None:
    pretrain, ptune, evaluate = specs_of(tmp_path, changed())
    stages = tmp_path / "run-1" / "stages"
    assert (pretrain.base, pretrain.prompts) == (None, None)
    assert (ptune.base, ptune.prompts) == (str(stages / "pretrain" / "checkpoints"), None)
    assert (evaluate.base, evaluate.prompts) == (ptune.base, str(stages / "ptune" / "checkpoints"))
    assert [spec.stage_dir for spec in (pretrain, ptune, evaluate)] == [
        str(stages / name) for name in ("pretrain", "ptune", "evaluate")
    ]
    assert pretrain.text is not None
    assert pretrain.text.paths == [str(tmp_path / "text")]
    assert pretrain.tokenizer.kind == "train"
    assert ptune.tokenizer.kind == evaluate.tokenizer.kind == "base"


def test_evaluate_takes_rows_and_templates_from_its_prompts_stage(tmp_path: Path) -> None:
    recipe = changed()
    for section in ("data", "task_templates"):
        recipe["stages"][1][section] = recipe.pop(section)
    _, ptune, evaluate = specs_of(tmp_path, recipe)
    assert evaluate.data == ptune.data
    assert evaluate.templates == ptune.templates


def test_specs_survive_json(tmp_path: Path) -> None:
    for spec in specs_of(tmp_path, changed()):
        assert from_dict(StageSpec, json.loads(json.dumps(to_dict(spec)))) == spec


def test_defaults_of_the_architecture(tmp_path: Path) -> None:
    assert specs_of(tmp_path, changed())[0].model == ModelSpec(
        num_layers=4,
        hidden_size=64,
        ffn_hidden_size=256,
        num_attention_heads=4,
        num_query_groups=4,
        kv_channels=16,
        max_position_embeddings=64,
        vocab_size=512,
        padded_vocab_size=512,
    )
    swiglu = specs_of(tmp_path, changed(("model.hidden_size", 4096), ("model.activation", "swiglu")))[0].model
    assert swiglu.ffn_hidden_size == 10880
    recipe = changed()
    del recipe["model"]["max_position_embeddings"]
    recipe["data"]["max_seq_length"] = recipe["text"]["seq_length"]
    recipe["generation"]["max_new_tokens"] = 4
    assert specs_of(tmp_path, recipe)[0].model.max_position_embeddings == 32


def test_a_checkpoint_gives_the_architecture(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, num_layers=6, rotary_base=5)
    recipe = single()
    recipe["model"] = {"checkpoint": "base", "hidden_dropout": 0.5}
    (spec,) = specs_of(tmp_path, recipe)
    assert (spec.model.num_layers, spec.model.padded_vocab_size, spec.model.hidden_dropout) == (6, 512, 0.5)
    assert spec.base == str(tmp_path / "base")
    assert spec.tokenizer.kind == "base"


def test_a_stage_may_split_otherwise_than_its_base(tmp_path: Path) -> None:
    changes = (("stages.0.parallel", {"tensor": 1}), ("stages.1.parallel", {"tensor": 1, "pipeline": 2}))
    specs = specs_of(tmp_path, changed(*changes))
    assert [(s.parallel.tensor, s.parallel.pipeline, s.parallel.data) for s in specs] == [
        (1, 1, 2),
        (1, 2, 1),
        (2, 1, 1),
    ]
    assert len({spec.model for spec in specs}) == 1


def test_prompts_belong_to_the_base_they_were_trained_on(tmp_path: Path) -> None:
    recipe = changed()
    recipe["stages"].insert(1, {"name": "other", "task": "pretrain"})
    recipe["stages"][3]["base"] = "other"
    (found,) = make_plan(load(write(tmp_path, recipe))).errors
    assert found.rule == "prompts belong to their base"


def test_evaluate_without_prompts_asks_the_model_alone(tmp_path: Path) -> None:
    recipe = changed(("stages.2", {"name": "alone", "task": "evaluate", "base": "pretrain"}))
    spec = specs_of(tmp_path, recipe)[2]
    assert spec.prompts is None
    assert spec.base is not None


def test_batch_and_steps(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    plan = make_plan(load(write(tmp_path, changed(("stages.1.trainer", {"max_epochs": 3})))))
    pretrain, ptune, evaluate = plan.stages
    assert (pretrain.total_steps, pretrain.gradient_accumulation_steps) == (10, 2)
    # 16 rows in batches of 8, three times over.
    assert ptune.total_steps == 6
    assert evaluate.total_steps is None
    assert isinstance(evaluate.spec, StageSpec)
    assert evaluate.spec.batch.micro_batch_size == 16


def test_more_batch_than_rows_is_a_warning(tmp_path: Path) -> None:
    plan = make_plan(load(write(tmp_path, changed(("batch.global", 32)))))
    (found,) = [finding for finding in plan.findings if finding.rule == "global batch <= training rows"]
    assert (found.severity, found.value, found.choices) == ("warning", 32, (16,))


def test_a_plan_with_errors_gives_no_specs(tmp_path: Path) -> None:
    plan = make_plan(load(write(tmp_path, changed(("batch.global", 9)))))
    with pytest.raises(PlanError, match="9 is not a multiple"):
        stage_specs(plan, "run-1", tmp_path)


def test_a_large_file_is_checked_in_part_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpclm.planning import row_checks

    path = write(tmp_path, changed(("stages.1.trainer", {"max_epochs": 3})))
    line = json.dumps(ROW) + "\n"
    monkeypatch.setattr(row_checks, "MIN_FILE_BYTES", len(line) * 5)
    monkeypatch.setattr(row_checks.Budget, "__init__", lambda self: setattr(self, "left", 0))
    plan = make_plan(load(path))
    assert not plan.errors
    found = [finding for finding in plan.findings if "only the first" in finding.message]
    assert (found[0].severity, found[0].value) == ("info", 5)
    assert plan.stages[1].total_steps is None


def test_row_numbers_count_empty_lines_and_rows_do_not(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("stages.1.trainer", {"max_epochs": 1})))
    (tmp_path / "train.jsonl").write_text("\n\n" + (json.dumps(ROW) + "\n\n") * 8)
    assert make_plan(load(path)).stages[1].total_steps == 1
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("x\n")
    (found,) = make_plan(load(path)).errors
    assert found.where == f"{tmp_path / 'train.jsonl'}:19"
