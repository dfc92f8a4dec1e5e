"""NeMo's own YAML runs as it is, and becomes a recipe that plans the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclm.cli import app as cli
from hpclm.core.errors import RecipeError
from hpclm.planning import make_plan
from hpclm.recipe import load

NEMO = Path(__file__).with_name("nemo_squad.yaml")
GIVEN = ["model.language_model_path=/models/gpt.nemo"]
EVALUATION = """
inference: {greedy: False, top_k: 0, top_p: 0.9, temperature: 1.0, add_BOS: True, tokens_to_generate: 30,
  all_probs: False, repetition_penalty: 1.2, min_tokens_to_generate: 0, compute_logprob: False, batch_size: 4}
trainer: {devices: 2, num_nodes: 1, accelerator: gpu, logger: False, precision: bf16}
tensor_model_parallel_size: 2
pipeline_model_parallel_size: 1
gpt_model_file: models/gpt.nemo
virtual_prompt_model_file: prompts.nemo
pred_file_path: out.txt
data_paths: [data/test.jsonl]
"""


def changed(folder: Path, **changes: Any) -> Path:
    """NeMo's file with values of its own keys changed (`model__seed=1`); None takes one out."""
    tree = yaml.safe_load(NEMO.read_text())
    for key, value in changes.items():
        *sections, last = key.split("__")
        entries = tree
        for section in sections:
            entries = entries.setdefault(section, {})
        if value is None:
            entries.pop(last, None)
        else:
            entries[last] = value
    path = folder / "nemo.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_the_whole_import(golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipe", "import", str(NEMO), "--set", *GIVEN]) == 0
    golden("nemo_squad_recipe.yaml", capsys.readouterr().out)


def test_overrides_are_hydras(tmp_path: Path) -> None:
    loaded = load(NEMO, [*GIVEN, "trainer.devices=2", "model.optim.lr=3e-4", "model.data.train_ds=[a.jsonl,b.jsonl]"])
    (stage,) = loaded.stages
    assert stage.recipe.resources.devices_per_node == 2
    assert stage.recipe.optim is not None
    assert stage.recipe.optim.lr == 3e-4
    assert stage.recipe.data is not None
    assert [Path(one).name for one in stage.recipe.data.train] == ["a.jsonl", "b.jsonl"]


def test_the_recipes_own_keys_are_reached_too() -> None:
    settings = [
        "hpclm.data.semantics=nemo",
        "hpclm.resources.time_limit_min=600",
        "hpclm.container.image=nvcr.io/x/y:1",
    ]
    loaded = load(NEMO, [*GIVEN, *settings], nodes=3, devices_per_node=8)
    recipe = loaded.stages[0].recipe
    assert recipe.data is not None
    assert recipe.data.semantics == "nemo"
    assert (recipe.resources.nodes, recipe.resources.devices_per_node, recipe.resources.time_limit_min) == (3, 8, 600)


def test_what_is_imported_plans_as_the_file_itself(tmp_path: Path) -> None:
    out = tmp_path / "recipe.yaml"
    assert cli.run(["recipe", "import", str(NEMO), "--set", *GIVEN, "-o", str(out)]) == 0
    assert load(out).resolved() == load(NEMO, GIVEN).resolved()


def test_nemos_defaults_are_kept_where_ours_are_others(tmp_path: Path) -> None:
    path = changed(tmp_path, model__language_model_path="m.nemo")
    tree = yaml.safe_load(path.read_text())
    for key in ("answer_only_loss", "answer_field"):
        del tree["model"]["task_templates"][0][key]
    path.write_text(yaml.safe_dump(tree))
    (template,) = load(path).stages[0].recipe.task_templates or ()
    assert (template.answer_only_loss, template.answer_field) == (False, None)


def test_new_tasks_beside_trained_ones(tmp_path: Path) -> None:
    tree = yaml.safe_load(NEMO.read_text())
    other = {**tree["model"]["task_templates"][0], "taskname": "boolq"}
    third = {**other, "taskname": "rte"}
    templates = [*tree["model"]["task_templates"], other, third]
    changes = {
        "model__task_templates": templates,
        "model__existing_tasks": ["boolq"],
        "model__language_model_path": "m",
    }
    alone = load(changed(tmp_path, **changes)).stages[0].recipe
    assert [one.taskname for one in alone.task_templates or ()] == ["squad"]
    assert alone.prompts is None
    added = load(changed(tmp_path, **changes, model__restore_path="old.nemo")).stages[0].recipe
    assert [one.taskname for one in added.task_templates or ()] == ["squad", "boolq"]
    assert added.prompts == str(tmp_path / "old.nemo")


def test_text_initialisation_of_prompt_tuning(tmp_path: Path) -> None:
    path = changed(tmp_path, model__virtual_prompt_style="prompt-tuning", model__language_model_path="m")
    (stage,) = load(path).stages
    (template,) = stage.recipe.task_templates or ()
    assert (stage.recipe.task, template.prompt_init) == ("prompt-tuning", "text")
    assert template.prompt_init_text == "some init text goes here"
    assert stage.recipe.prompt is None


def test_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "inference.yaml"
    path.write_text(EVALUATION)
    (stage,) = load(path).stages
    recipe = stage.recipe
    assert recipe.task == "evaluate"
    assert recipe.generation is not None
    assert recipe.generation.model_dump() == {
        "max_new_tokens": 30,
        "min_new_tokens": 0,
        "greedy": False,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "end_strings": (),
        "add_bos": True,
        "batch_size": 4,
    }
    assert recipe.prompts == str(tmp_path / "prompts.nemo")
    assert recipe.parallel.tensor == 2
    greedy = load(path, ["inference.greedy=true"]).stages[0].recipe.generation
    assert greedy is not None
    assert greedy.repetition_penalty == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "${trainer.nowhere}"}, "${trainer.nowhere} refers to nothing in this file"),
        ({"name": "${name}"}, "refers to itself"),
        ({"name": "${exp_manager.name}"}, "refers to itself"),
        ({"name": "${oc.env:HOME}"}, "functions other than multiply, divide_ceil, divide_floor are not run"),
        ({"name": "x${model.optim.betas}"}, "a reference in a text is not a plain value"),
        ({"name": "$(touch pwned)"}, "is not a valid name"),
        ({"trainer__limit_train_batches": 10}, "changes results, and hpclm does not have it; write trainer.max_steps"),
        ({"model__optim__sched__max_steps": 10}, "trainer.max_steps sets the schedule's end"),
        ({"model__optim__name": "sgd"}, "'sgd' is not supported; choose one of fused_adam"),
        ({"model__optim__sched__name": "PolynomialDecayAnnealing"}, "is not supported; choose CosineAnnealing"),
        ({"model__virtual_prompt_style": "inference"}, "does not train; choose p-tuning or prompt-tuning"),
        ({"trainer__precision": 8}, "8 is not a valid precision; choose 16, bf16 or 32"),
        ({"trainer__accelerator": "tpu"}, "choose gpu or cpu"),
        (
            {"model__report_validation_metric": True, "model__validation_metric": "mauve"},
            "'mauve' is not a supported metric",
        ),
        ({"model__global_batch_size": "many"}, "must be a whole number"),
        ({"model__language_model_path": "???"}, "model.language_model_path must be given"),
    ],
)
def test_a_mistake_is_named_at_its_line_in_nemos_file(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = changed(tmp_path, **{"model__language_model_path": "m.nemo", **changes})
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert words in str(caught.value)
    assert all(line.startswith(f"{path}:") for line in str(caught.value).splitlines())
    assert not (tmp_path / "pwned").exists()


def test_an_override_of_an_unknown_key_is_refused_as_by_hydra() -> None:
    with pytest.raises(RecipeError, match=r"unknown to hpclm.*did you mean model.optim.lr\? \+model.optim.lrr=… adds"):
        load(NEMO, [*GIVEN, "model.optim.lrr=1"])
    assert load(NEMO, [*GIVEN, "+model.optim.lrr=1", "+model.newer.key=2"]).stages


def test_an_unknown_key_of_the_file_is_a_warning(tmp_path: Path) -> None:
    path = changed(tmp_path, model__language_model_path="m.nemo", model__newer={"setting": 1})
    (finding,) = (one for one in make_plan(load(path)).findings if "no release of NeMo" in one.message)
    assert finding.severity == "warning"
    assert finding.where.startswith(f"{path}:")
    assert finding.where.endswith(" model.newer.setting")


def test_every_finding_of_the_plan_is_at_nemos_lines(tmp_path: Path) -> None:
    path = changed(tmp_path, model__language_model_path="m.nemo", model__micro_batch_size=3)
    plan = make_plan(load(path))
    batch = next(finding for finding in plan.errors if "micro 3" in finding.message)
    line = path.read_text().splitlines()[int(batch.where.split(":")[1].split()[0]) - 1]
    assert "global_batch_size" in line


def test_json_says_each_keys_fate(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipe", "import", str(NEMO), "--set", *GIVEN, "--json"]) == 0
    keys = {one["key"]: one["fate"] for one in json.loads(capsys.readouterr().out)["keys"]}
    assert keys["model.optim.lr"] == "taken"
    assert keys["model.data.shuffle"] == "no effect"
    assert keys["model.nemo_path"] == "not supported"
    assert len(keys) == sum(1 for _ in _leaves(yaml.safe_load(NEMO.read_text())))


def _leaves(value: Any) -> Any:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    else:
        yield value


def test_our_own_recipe_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\nname: x\n")
    assert cli.run(["recipe", "import", str(path)]) != 0
