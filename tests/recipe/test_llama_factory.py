"""LLaMA-Factory's YAML becomes a recipe that means the same, or is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.errors import RecipeError
from hpclm.recipe import load
from hpclm.recipe.importers import KeyFate
from hpclm.recipe.loading import translated
from tests.support.fine_tuning_files import INFO, LLAMA_FACTORY, write_beside, write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_beside(tmp_path)
    return tmp_path


def recipe_of(folder: Path, *overrides: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = translated(write_config(folder, LLAMA_FACTORY, **changes), overrides)[1].plain()
    return found


def test_the_whole_import(folder: Path) -> None:
    assert recipe_of(folder) == {
        "version": 1,
        "name": "config",
        "task": "fine-tune",
        "engine": "hf",
        "model": {"checkpoint": "base"},
        "fine_tune": {"method": "lora", "lora": {"rank": 16, "alpha": 32.0, "targets": ("q_proj", "v_proj")}},
        "batch": {"global": 8, "micro": 2},
        "trainer": {"max_epochs": 2, "precision": "bf16", "log_interval_steps": 5, "seed": 42},
        "optim": {
            "name": "adamw",
            "lr": 2e-4,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "epsilon": 1e-8,
            "schedule": {"name": "cosine", "from_zero": True, "warmup_ratio": 0.1},
        },
        "checkpoint": {"save_interval_steps": 50},
        "sharding": {"checkpointing": True},
        "instructions": {
            "train": ("data/words.jsonl",),
            "format": "alpaca",
            "template": "llama-factory",
            "max_seq_length": 96,
        },
    }


def test_the_global_batch_is_that_of_the_devices(folder: Path) -> None:
    path = write_config(folder, LLAMA_FACTORY)
    assert load(path, nodes=2, devices_per_node=4).stages[0].recipe.batch.global_size == 64  # type: ignore[union-attr]
    own = load(path, ["hpclm.batch.global=6"], devices_per_node=4).stages[0].recipe.batch
    assert own is not None
    assert own.global_size == 6


def test_its_command_line_is_taken(folder: Path) -> None:
    made = recipe_of(folder, "learning_rate=1e-5", "stage=sft", "++lora_rank=4")
    assert (made["optim"]["lr"], made["fine_tune"]["lora"]) == (
        1e-5,
        {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj")},
    )
    with pytest.raises(RecipeError, match=r"learning_rat is not a key .*; did you mean learning_rate\?"):
        recipe_of(folder, "learning_rat=1")
    assert recipe_of(folder, "+brand_new=1")


@pytest.mark.parametrize(
    ("changes", "section", "wanted"),
    [
        ({"finetuning_type": "full"}, "fine_tune", {"method": "full"}),
        ({"lora_alpha": 7, "use_rslora": True, "additional_target": "lm_head"}, "fine_tune", {
            "method": "lora",
            "lora": {"rank": 16, "alpha": 7.0, "targets": ("q_proj", "v_proj"), "modules_to_save": ("lm_head",),
                     "rslora": True}}),
        ({"lora_target": None}, "fine_tune", {
            "method": "lora", "lora": {"rank": 16, "alpha": 32.0, "targets": ("all-linear",)}}),
        ({"disable_gradient_checkpointing": True}, "sharding", None),
        ({"fsdp": "full_shard auto_wrap offload"}, "sharding", {
            "strategy": "fsdp", "offload": "all", "checkpointing": True}),
        ({"report_to": ["wandb", "tensorboard"], "run_name": "mine"}, "tracking", {
            "tensorboard": True, "wandb": {"name": "mine"}}),
        ({"save_strategy": "epoch", "save_total_limit": 3}, "checkpoint", {"keep_last": 3}),
    ],
)  # fmt: skip
def test_a_key_is_taken(folder: Path, changes: dict[str, Any], section: str, wanted: Any) -> None:
    assert recipe_of(folder, **changes).get(section) == wanted


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"eval_dataset": "held_out"}, {"validation": ("data/held_out.jsonl",)}),
        ({"dataset": "words, talk", "template": "qwen"}, {
            "train": ("data/words.jsonl", "data/talk.json"), "format": "auto", "template": "chat"}),
        ({"train_on_prompt": True}, {"learn": "everything"}),
        ({"mask_history": True}, {"learn": "last-answer"}),
        ({"neat_packing": True}, {"packing": True}),
        ({"default_system": "Be short."}, {"system": "Be short."}),
        ({"max_samples": 4}, {}),
        ({"cutoff_len": None}, {"max_seq_length": 2048}),
    ],
)  # fmt: skip
def test_how_rows_are_read(folder: Path, changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    usual = {"train": ("data/words.jsonl",), "format": "alpaca", "template": "llama-factory", "max_seq_length": 96}
    assert recipe_of(folder, **changes)["instructions"] == {**usual, **wanted}


@pytest.mark.parametrize(
    ("stage", "offload", "wanted"),
    [
        (0, {}, {"checkpointing": True}),
        (2, {}, {"strategy": "zero2", "deepspeed": "ds.json", "checkpointing": True}),
        (3, {"offload_optimizer": {"device": "cpu"}}, {
            "strategy": "zero3", "deepspeed": "ds.json", "offload": "optimizer", "checkpointing": True}),
        (3, {"offload_optimizer": {"device": "nvme", "nvme_path": "/local"}, "offload_param": {"device": "nvme"}}, {
            "strategy": "zero3", "deepspeed": "ds.json", "offload": "all", "nvme": "/local", "checkpointing": True}),
    ],
)  # fmt: skip
def test_a_deepspeed_file(folder: Path, stage: int, offload: dict[str, Any], wanted: dict[str, Any]) -> None:
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage, **offload}}))
    assert recipe_of(folder, deepspeed="ds.json")["sharding"] == wanted


def test_layers_that_deepspeed_would_divide(folder: Path) -> None:
    (folder / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "tensor_parallel": {"autotp_size": 2}}')
    with pytest.raises(RecipeError, match="tensor_parallel: layers are not divided by engine hf"):
        recipe_of(folder, deepspeed="ds.json")


def test_paths_are_those_of_the_repository_that_the_file_lies_in(folder: Path) -> None:
    deep = folder / "examples" / "train"
    deep.mkdir(parents=True)
    assert recipe_of(deep)["instructions"]["train"] == ("../../data/words.jsonl",)
    (stage,) = load(deep / "config.yaml").stages
    assert stage.recipe.instructions.train == (str(folder / "data" / "words.jsonl"),)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("columns", "row", "wanted"),
    [
        ({"prompt": "q", "response": "a"}, {"q": "x", "a": "y"}, {"instruction": "q", "output": "a"}),
        ({"prompt": "instruction", "query": "about", "response": "output"}, {"instruction": "x", "about": "z"}, {
            "input": "about"}),
    ],
)  # fmt: skip
def test_columns(folder: Path, columns: dict[str, str], row: dict[str, str], wanted: dict[str, str]) -> None:
    write_beside(folder, info={"words": {"file_name": "words.jsonl", "columns": columns}})
    (folder / "data" / "words.jsonl").write_text(json.dumps(row) + "\n")
    assert recipe_of(folder)["instructions"]["columns"] == wanted


def test_columns_and_tags_of_messages(folder: Path) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "asker", "assistant_tag": "helper"}
    entry = {
        "file_name": "talk.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "system": "rules"},
        "tags": tags,
    }
    write_beside(folder, info={"talk": entry})
    made = recipe_of(folder, dataset="talk", template="llama3")["instructions"]
    assert made["format"] == "messages"
    assert made["columns"] == {"messages": "talk", "system": "rules"}
    assert made["roles"] == {"user": "asker", "assistant": "helper"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"columns": {"images": "images"}}, "rows of images, video or sound are not read"),
        ({"columns": {"tools": "tools"}}, "rows with a list of tools are not read"),
        ({"ranking": True}, "rows of preferences"),
        ({"formatting": "xml"}, "choose alpaca, sharegpt or openai"),
        ({"formatting": "sharegpt", "tags": {"role_tag": "who"}}, "call it role in the rows"),
        ({"split": "train[:10]"}, "write the part to a file"),
        ({"num_samples": 5}, "write so many rows into a file"),
        ({"file_name": None}, "has no file_name"),
        ({"colums": {}}, "colums is not a key of dataset_info.json"),
        ({"columns": {"prompt": "instruction", "response": "output"}}, None),
        ({"columns": {"response": "output"}}, "rows have instruction, which LLaMA-Factory reads only if columns has"),
        ({"columns": 3}, "columns must be a mapping of names"),
    ],
)
def test_a_data_set_that_cannot_be_read_the_same_way(folder: Path, entry: dict[str, Any], words: str | None) -> None:
    write_beside(folder, info={"words": {"file_name": "words.jsonl", **entry}})
    if words is None:
        assert "columns" not in recipe_of(folder)["instructions"]
        return
    with pytest.raises(RecipeError) as caught:
        recipe_of(folder)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'config.yaml'}:7: words: ")


def test_a_data_set_on_a_hub_is_fetched_first(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"hpclm data fetch someone/rows --out FOLDER\), then give --set"):
        recipe_of(folder, dataset="on_hub")
    made = recipe_of(folder, "hpclm.instructions.train=[rows.jsonl]", dataset="on_hub")["instructions"]
    assert (made["train"], made["format"], made["template"]) == (("rows.jsonl",), "alpaca", "llama-factory")


def test_data_sets_that_do_not_go_together(folder: Path) -> None:
    other = {"file_name": "held_out.jsonl", "columns": {"prompt": "q", "response": "output"}}
    write_beside(folder, info={**INFO, "other": other})
    (folder / "data" / "held_out.jsonl").write_text('{"q": "x", "output": "y"}\n')
    with pytest.raises(RecipeError, match="instruction is called instruction in words and q in other; call them alike"):
        recipe_of(folder, dataset="words,other")


def test_four_bits_quantise_the_frozen_layers(folder: Path) -> None:
    assert recipe_of(folder, quantization_bit=4)["huggingface"]["quantization"] == "nf4"
    assert recipe_of(folder, quantization_bit=4, quantization_method="bnb")["huggingface"]["quantization"] == "nf4"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "dpo"}, "stage dpo: there is no DPO; choose sft"),
        ({"stage": "pt"}, "task pretrain's, by engine megatron"),
        ({"finetuning_type": "oft"}, "there is no OFT; choose lora or full"),
        ({"finetuning_type": "freeze"}, "choose full"),
        ({"quantization_bit": 8}, "quantization_bit 8 by bnb (nf4) is not supported; choose 4, bnb and nf4"),
        ({"quantization_bit": 4, "quantization_type": "fp4"}, "quantization_bit 4 by bnb (fp4) is not supported"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "quantization_bit 4 by hqq (nf4) is not supported"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "a quantised model is not trained itself"),
        ({"use_galore": True}, "there is no such optimizer"),
        ({"use_unsloth": True}, "unsloth's kernels are not used"),
        ({"streaming": True}, "rows are prepared before training"),
        ({"adapter_name_or_path": "x"}, "merge it into the model"),
        ({"export_dir": "x"}, "this file merges or exports a model"),
        ({"do_predict": True}, "predictions are an evaluate stage"),
        ({"max_samples": 3}, "max_samples 3 may leave out rows of words; write its first 3 into a file"),
        ({"val_size": 0.1}, "rows are not split; cut the file in two"),
        ({"dataset": "wrods"}, "wrods is not in data/dataset_info.json; did you mean words?"),
        ({"dataset": None}, "dataset is missing"),
        ({"dataset_dir": "elsewhere"}, "elsewhere/dataset_info.json cannot be read"),
        ({"dataset_dir": "ONLINE"}, "dataset_dir ONLINE is on a hub"),
        ({"template": "default"}, "write it as Jinja into a file"),
        ({"optim": "muon"}, "muon is not an optimizer that hpclm has; choose of adafactor"),
        ({"lr_scheduler_type": "greedy"}, "greedy is not a schedule that hpclm has"),
        ({"num_train_epochs": 0.5}, "0.5 is no whole number of epochs; give max_steps"),
        ({"bf16": "maybe"}, "bf16 must be true or false"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        ({"deepspeed": "none.json"}, "none.json: cannot be read"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "write it as JSON into a file"),
        ({"fsdp": "hybrid_shard"}, "hybrid_shard is not supported"),
        ({"label_smoothing_factor": 0.1}, "there is no label smoothing"),
        ({"resume_from_checkpoint": "out/checkpoint-5"}, "hpclm resume RUN"),
    ],
)
def test_what_would_change_the_result_is_refused_at_its_line(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(folder, **changes)
    assert words in str(caught.value)
    assert all(line.startswith(f"{folder / 'config.yaml'}:") for line in str(caught.value).splitlines())


def test_a_token_in_the_file_is_neither_taken_nor_shown(folder: Path) -> None:
    token = "hf_" + "abcDEF0123456789abcd"
    with pytest.raises(RecipeError, match="hf_hub_token holds a secret") as caught:
        recipe_of(folder, hf_hub_token=token)
    assert token not in str(caught.value)


def test_every_key_has_a_note_and_what_differs_is_a_warning(folder: Path) -> None:
    path = write_config(folder, LLAMA_FACTORY, template="qwen3", packing=True, brand_new=1, trust_remote_code=True)
    notes = {note.key: note for note in translated(path)[2]}
    assert len(notes) == len(path.read_text().splitlines())
    assert notes["brand_new"].fate is KeyFate.UNKNOWN
    assert notes["packing"].fate is KeyFate.DIFFERS
    assert notes["trust_remote_code"].fate is KeyFate.NO_EFFECT
    doubtful = {note.key: note.note for note in load(path).doubtful_keys}
    assert set(doubtful) == {"template", "packing", "brand_new"}
    assert "LLaMA-Factory lets packed rows see each other, hpclm does not" in doubtful["packing"]


def test_what_is_imported_means_the_same_as_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_config(folder, LLAMA_FACTORY), folder / "elsewhere" / "recipe.yaml"
    out.parent.mkdir()
    settings = ["name=config", "resources.devices_per_node=2"]
    given = [f"hpclm.{one}" for one in settings]
    assert cli.run(["recipe", "import", str(path), "--set", *given, "-o", str(out)]) == 0
    assert "dataset → instructions.train" in capsys.readouterr().out
    assert load(out).resolved() == load(path, given).resolved()


def test_a_section_that_is_none_can_be_imported_to_another_folder(folder: Path) -> None:
    path, out = write_config(folder, LLAMA_FACTORY), folder / "elsewhere" / "recipe.yaml"
    out.parent.mkdir()
    assert cli.run(["recipe", "import", str(path), "--set", "hpclm.instructions=5", "-o", str(out)]) == 0
    with pytest.raises(RecipeError, match="instructions"):
        load(out)
