"""Every released YAML of NeMo's prompt learning and of its launcher plans as it is, but for the user's paths."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer

from hpclm.core.spec import StageSpec
from hpclm.planning import make_plan
from hpclm.planning.plan import Plan
from hpclm.recipe import load
from hpclm.recipe.import_report import imported
from hpclm.recipe.importers import KeyFate
from tests.archives.test_nemo_run import MODEL, weights
from tests.support.nemo_files import bpe_files, saved, write_archive, write_members
from tests.support.nemo_releases import (
    INFERENCE,
    LAUNCHER_CONFIG,
    LAUNCHER_EVALUATION,
    LAUNCHER_TRAINING,
    SQUAD,
    TRAINING,
    flat,
    numbers_of,
    same_file_as,
    write,
)

RELEASES = [f"1.{minor}" for minor in range(13, 23)]
LAUNCHERS = ["23.03", "23.05", "23.07", "23.08.02", "23.11", "24.05"]
RTE = {**SQUAD, "taskname": "rte", "prompt_template": "<|VIRTUAL_PROMPT_0|>{premise}\n{hypothesis}\nAnswer: {answer}"}
RTE |= {"truncate_field": None, "total_virtual_tokens": 9, "virtual_token_splits": [9]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a NeMo user has: a model, trained prompts, rows; and the launcher's folders."""
    folder = tmp_path_factory.mktemp("nemo")
    split = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 1}
    write_archive(folder / "gpt.nemo", weights(), MODEL, tensor=2, files=bpe_files(), config=split)
    table = {"prompt_table.squad.prompt_embeddings.weight": weights()["embedding.word_embeddings.weight"][:10]}
    trained = {
        "task_templates": [RTE, SQUAD],
        "language_model_path": str(folder / "gpt.nemo"),
        "nemo_version": "1.16.0",
    }
    members = {"model_config.yaml": json.dumps(trained).encode(), "model_weights.ckpt": saved({"prompt_table": table})}
    write_members(folder / "prompts.nemo", members)
    rows = [{"taskname": "squad", "context": "a", "question": "b", "answer": " c"}] * 64
    other = [{"taskname": "rte", "premise": "a", "hypothesis": "b", "answer": " c"}] * 8
    for name, content in (("squad_train", rows), ("squad_val", rows[:8]), ("rte_train", other), ("rte_val", other)):
        for path in (folder / "data" / f"{name}.jsonl", folder / "data" / "prompt_data" / "v1.1" / f"{name}.jsonl"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
    results = folder / "results" / "gpt3_5b"
    for name in ("convert_nemo/results/megatron_gpt.nemo", "prompt_learning_squad/results/megatron_gpt_prompt.nemo"):
        (results / name).parent.mkdir(parents=True)
        (results / name).symlink_to(folder / ("prompts.nemo" if "prompt_learning" in name else "gpt.nemo"))
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text(LAUNCHER_CONFIG)
    return folder


def planned(path: Path, given: list[str]) -> Plan:
    """The plan, which may only say that the released numbers are too large for the small model."""
    plan = make_plan(load(path, given))
    assert [str(one) for one in plan.findings if one.rule == "keys of the other tool"] == []
    assert [str(one) for one in plan.errors] == []
    return plan


def nothing_unknown(path: Path, given: list[str], keys: set[str]) -> None:
    """Each key of the file has a note, and none is unknown."""
    _, notes = imported(path, given, path.parent)
    assert {note.key for note in notes} >= keys
    assert [note for note in notes if note.fate is KeyFate.UNKNOWN] == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_training_of_every_release(site: Path, release: str) -> None:
    same = same_file_as(TRAINING, release)
    path = write(site / f"train-{release}.yaml", TRAINING, same, [RTE, SQUAD])
    given = [f"model.language_model_path={site}/gpt.nemo", "hpclm.resources.device=cpu", "trainer.precision=32"]
    nothing_unknown(path, given, set(flat(TRAINING, same)))
    (stage,) = planned(path, given).stages
    assert (stage.task, stage.total_steps) == ("p-tuning", 3)


@pytest.mark.parametrize("release", RELEASES)
def test_the_evaluation_of_every_release(site: Path, release: str) -> None:
    same = same_file_as(INFERENCE, release)
    path = write(site / f"inference-{release}.yaml", INFERENCE, same)
    given = [
        f"virtual_prompt_model_file={site}/prompts.nemo",
        f"data_paths=[{site}/data/squad_val.jsonl]",
        "pred_file_path=out.txt",
        "trainer.precision=32",
        "hpclm.resources.device=cpu",
    ]
    if numbers_of(release) >= [1, 18]:  # the split is the archive's, which has two tensor ranks
        given.append("trainer.devices=2")
    nothing_unknown(path, given, set(flat(INFERENCE, same)))
    (stage,) = planned(path, given).stages
    assert stage.parallel is not None
    assert stage.parallel.tensor == (2 if numbers_of(release) >= [1, 18] else 1)


@pytest.mark.parametrize("release", LAUNCHERS)
def test_the_launchers_training(site: Path, release: str) -> None:
    same = same_file_as(LAUNCHER_TRAINING, release)
    path = write(site / "conf" / "prompt_learning" / "gpt3" / f"squad-{release}.yaml", LAUNCHER_TRAINING, same, [SQUAD])
    given = [
        f"launcher_scripts_path={site}",
        f"++base_results_dir={site}/results",
        "prompt_learning.trainer.precision=32",
        "hpclm.resources.device=cpu",
    ]
    nothing_unknown(path, given, set(flat(LAUNCHER_TRAINING, same)))
    plan = planned(path, given)
    (stage,) = plan.stages
    assert (plan.name, stage.resources.devices_per_node, stage.resources.time_limit_min) == ("squad_gpt3_5b", 8, 240)


def test_the_launchers_evaluation(site: Path) -> None:
    path = write(site / "conf" / "evaluation" / "prompt_gpt3" / "squad.yaml", LAUNCHER_EVALUATION, "23.03")
    given = [f"launcher_scripts_path={site}", "evaluation.model.precision=32", "hpclm.resources.device=cpu"]
    nothing_unknown(path, given, set(flat(LAUNCHER_EVALUATION, "23.03")))
    plan = planned(path, given)
    (stage,) = plan.stages
    assert stage.parallel is not None
    assert (plan.name, stage.parallel.tensor, stage.resources.devices_per_node) == ("eval_prompt_squad_gpt3_5b", 2, 2)


def test_a_missing_folder_of_the_launcher_is_named(site: Path) -> None:
    path = write(site / "conf" / "prompt_learning" / "gpt3" / "squad.yaml", LAUNCHER_TRAINING, "23.03", [SQUAD])
    with pytest.raises(Exception, match="needs launcher_scripts_path, which is not given; write launcher_scripts_path"):
        load(path)


def test_lists_of_templates_on_the_command_line(site: Path) -> None:
    path = write(site / "hydra.yaml", TRAINING, "1.13", [RTE])
    mine: dict[str, Any] = {**SQUAD, "taskname": "mine", "prompt_template": "<|VIRTUAL_PROMPT_0|> {a}: {answer}"}
    template = ",".join(f"{key}:{json.dumps(value)}" for key, value in mine.items() if key != "truncate_field")
    given = ["model.language_model_path=m.nemo", f"model.task_templates=[{{{template}}}]", "model.new_tasks=[mine]"]
    (found,) = load(path, given).stages[0].recipe.task_templates or ()
    assert (found.taskname, found.prompt_template) == ("mine", "<|VIRTUAL_PROMPT_0|> {a}: {answer}")
    assert load(path, [*given, "~model.optim.sched"]).stages[0].recipe.optim is not None


def test_prompts_of_several_tasks_and_names_with_spaces(site: Path) -> None:
    """From r1.17 on one table serves all tasks that it was trained for; others have templates alone."""
    table = weights()["embedding.word_embeddings.weight"][:10]
    templates = [{**SQUAD, "taskname": name} for name in ("my task", "other task", "never trained")]
    config = {"task_templates": templates, "new_tasks": ["my task", "other task"], "language_model_path": "gpt.nemo"}
    stored = saved({"prompt_table": {"prompt_table.my task.prompt_embeddings.weight": table}})
    prompts = write_members(
        site / "several.nemo", {"model_config.yaml": json.dumps(config).encode(), "model_weights.ckpt": stored}
    )
    rows = [{"taskname": name, "context": "a", "question": "b", "answer": " c"} for name in ("my task", "other task")]
    (site / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write(site / "several.yaml", INFERENCE, "1.13")
    given = [f"virtual_prompt_model_file={prompts}", f"data_paths=[{site}/several.jsonl]", "pred_file_path=out.txt"]
    (stage,) = planned(path, [*given, "trainer.precision=32", "hpclm.resources.device=cpu"]).stages
    assert isinstance(stage.spec, StageSpec)
    assert {one.taskname: one.stored_as for one in stage.spec.templates} == {"my task": None, "other task": "my task"}
    assert stage.spec.base == str(site / "gpt.nemo")
    _, notes = imported(path, given, path.parent)
    assert "prompts; without templates that it has no prompts for: never trained" in {note.note for note in notes}


def test_a_new_task_may_have_another_number_of_virtual_tokens(site: Path) -> None:
    path = write(site / "added.yaml", TRAINING, "1.13", [SQUAD, RTE])
    given = [
        f"model.language_model_path={site}/gpt.nemo",
        f"model.restore_path={site}/prompts.nemo",
        "model.existing_tasks=[squad]",
        "trainer.precision=32",
        "hpclm.resources.device=cpu",
    ]
    (stage,) = planned(path, given).stages
    assert isinstance(stage.spec, StageSpec)
    assert [one.total_virtual_tokens for one in stage.spec.templates] == [10, 9]


@pytest.mark.parametrize(
    ("said", "reading"),
    [
        ({"nemo_version": "1.16.0"}, "nemo-1.21"),
        ({"nemo_version": "1.21.0rc1"}, "nemo-1.21"),
        ({"nemo_version": "1.22.0"}, "nemo"),
        ({}, "nemo"),
        ({"hpclm_semantics": "nemo-1.21"}, "nemo-1.21"),
    ],
)
def test_rows_are_read_as_by_the_release_that_trained_the_prompts(
    site: Path, said: dict[str, str], reading: str
) -> None:
    """A relative path of the base model, here of an archive in another folder than the file, is from the archive."""
    table = saved({"prompt_table": {"prompt_table.squad.weight": weights()["embedding.word_embeddings.weight"][:10]}})
    config = {"task_templates": [SQUAD], "language_model_path": "gpt.nemo", **said}
    members = {"model_config.yaml": json.dumps(config).encode(), "model_weights.ckpt": table}
    write_members(site / "trained.nemo", members)
    (site / "files").mkdir(exist_ok=True)
    path = write(site / "files" / "reading.yaml", INFERENCE, "1.13")
    given = [
        "virtual_prompt_model_file=../trained.nemo",
        f"data_paths=[{site}/data/squad_val.jsonl]",
        "pred_file_path=o.txt",
    ]
    given += ["trainer.precision=32", "hpclm.resources.device=cpu", "hpclm.data.semantics=nemo"]
    (stage,) = planned(path, given).stages
    assert isinstance(stage.spec, StageSpec)
    assert stage.spec.data is not None
    assert stage.spec.data.semantics == reading
    assert stage.spec.base is not None
    assert Path(stage.spec.base).resolve() == (site / "gpt.nemo").resolve()


def test_an_archive_with_a_sentencepiece_model_needs_no_other_tokenizer(site: Path) -> None:
    pieces = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog is not a cat"] * 20),
        model_writer=pieces,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = replace(MODEL, vocab_size=128, padded_vocab_size=128)
    rows = "embedding.word_embeddings.weight"
    write_archive(
        site / "pieces.nemo",
        weights() | {rows: weights()[rows][:128]},
        model,
        tensor=1,
        files={"0a1b_tokenizer.model": pieces.getvalue()},
    )
    path = write(site / "pieces.yaml", TRAINING, "1.13", [RTE, SQUAD])
    given = [f"model.language_model_path={site}/pieces.nemo", "hpclm.resources.device=cpu", "trainer.precision=32"]
    (stage,) = planned(path, given).stages
    assert isinstance(stage.spec, StageSpec)
    assert stage.spec.tokenizer.sentencepiece
    assert "sentencepiece" in stage.spec.needs.packages
    assert stage.spec.model.vocab_size < stage.spec.model.padded_vocab_size == 128
