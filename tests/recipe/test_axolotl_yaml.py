"""axolotl's YAML becomes a recipe that means the same, or is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpclm.core.errors import RecipeError
from hpclm.recipe import load
from hpclm.recipe.importers import KeyFate
from hpclm.recipe.loading import translated
from tests.support.fine_tuning_files import AXOLOTL, write_beside, write_config

CHAT = {"path": "data/talk.json", "type": "chat_template", "field_messages": "conversations"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_beside(tmp_path)
    return tmp_path


def recipe_of(folder: Path, *overrides: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = translated(write_config(folder, AXOLOTL, **changes), overrides)[1].plain()
    return found


def test_the_whole_import(folder: Path) -> None:
    lora = {"rank": 8, "alpha": 32.0, "dropout": 0.05, "targets": ("all-linear",)}
    assert recipe_of(folder) == {
        "version": 1,
        "name": "config",
        "task": "fine-tune",
        "engine": "hf",
        "model": {"checkpoint": "base"},
        "fine_tune": {"method": "lora", "lora": lora},
        "batch": {"global": 6, "micro": 3},
        "trainer": {"max_epochs": 1, "precision": "bf16", "val_check_interval": 0.25, "seed": 42},
        "optim": {
            "name": "adamw",
            "lr": 3e-4,
            "weight_decay": 0.1,
            "betas": (0.9, 0.999),
            "epsilon": 1e-8,
            "schedule": {"name": "cosine", "from_zero": True, "warmup_ratio": 0.03},
        },
        "sharding": {"checkpointing": True},
        "instructions": {
            "train": ("data/words.jsonl",),
            "format": "alpaca",
            "template": "axolotl",
            "max_seq_length": 96,
            "too_long": "leave-out",
            "packing": True,
        },
    }


@pytest.mark.parametrize(
    ("changes", "section", "wanted"),
    [
        ({"adapter": ""}, "fine_tune", {"method": "full"}),
        ({"gradient_accumulation_steps": None, "batch_size": 12}, "batch", {"global": 12, "micro": 3}),
        ({"optimizer": "paged_adamw_8bit", "learning_rate": "1e-5"}, "optim", {"name": "adamw-8bit", "lr": 1e-5}),
        ({"cosine_min_lr_ratio": 0.5}, "optim", {"min_lr": 1.5e-4}),
        ({"lr_scheduler": "constant"}, "optim", {"schedule": {"name": "constant", "from_zero": True}}),
        ({"warmup_steps": 10}, "optim", {
            "schedule": {"name": "cosine", "from_zero": True, "warmup_steps": 10}}),
        ({"max_steps": 20, "eval_steps": 0.25, "evals_per_epoch": None}, "trainer", {
            "max_steps": 20, "val_check_interval": 5}),
        ({"fp16": True, "bf16": False}, "trainer", {"precision": "fp16"}),
        ({"bf16": False, "tf32": True}, "trainer", {"precision": "tf32"}),
        ({"fsdp": ["full_shard", "auto_wrap"], "fsdp_config": {"fsdp_offload_params": True}}, "sharding", {
            "strategy": "fsdp", "offload": "all"}),
        ({"fsdp_version": 2, "fsdp_config": {"offload_params": False, "reshard_after_forward": True}}, "sharding", {
            "strategy": "fsdp"}),
        ({"dp_shard_size": 4, "dp_replicate_size": 2}, "sharding", {"strategy": "fsdp", "group_size": 4}),
        ({"wandb_project": "p", "wandb_mode": "offline", "use_tensorboard": True}, "tracking", {
            "wandb": {"project": "p", "mode": "offline"}, "tensorboard": True}),
        ({"train_on_inputs": True, "excess_length_strategy": "truncate"}, "instructions", {
            "learn": "everything", "too_long": "cut"}),
        ({"test_datasets": [{"path": "data/held_out.jsonl", "type": "alpaca"}]}, "instructions", {
            "validation": ("data/held_out.jsonl",)}),
        ({"datasets": [{"path": "json", "data_files": "data/words.jsonl", "type": "alpaca"}]}, "instructions", {
            "train": ("data/words.jsonl",)}),
        ({"datasets": [CHAT], "sample_packing": False}, "instructions", {
            "train": ("data/talk.json",), "format": "messages", "template": "chat"}),
    ],
)  # fmt: skip
def test_a_key_is_taken(folder: Path, changes: dict[str, Any], section: str, wanted: dict[str, Any]) -> None:
    made = recipe_of(folder, **changes)[section]
    assert {key: made.get(key) for key in wanted} == wanted


def test_names_of_roles_and_messages(folder: Path) -> None:
    entry = {**CHAT, "field_messages": "talk", "message_property_mappings": {"role": "from", "content": "value"}}
    entry["roles"] = {"user": ["human", "asker"], "assistant": ["gpt"]}
    made = recipe_of(folder, datasets=[entry])["instructions"]
    assert (made["columns"], made["roles"]) == ({"messages": "talk"}, {"user": "asker"})


def test_a_chat_template_in_a_file(folder: Path) -> None:
    (folder / "mine.jinja").write_text("{{ messages }}")
    changes = {"datasets": [CHAT], "chat_template": "jinja", "chat_template_jinja": "mine.jinja"}
    assert recipe_of(folder, **changes)["instructions"]["chat_template"] == "mine.jinja"


def test_a_named_chat_template_is_a_warning(folder: Path) -> None:
    path = write_config(folder, AXOLOTL, datasets=[CHAT], chat_template="llama3")
    (note,) = load(path).doubtful_keys
    assert (note.key, note.fate) == ("chat_template", KeyFate.DIFFERS)
    assert "the model's own chat template, which should be axolotl's llama3" in note.note


def test_rows_on_a_hub_keep_their_form(folder: Path) -> None:
    hub = [{"path": "someone/rows", "type": "alpaca", "split": "train[:1%]"}]
    with pytest.raises(RecipeError, match=r"hpclm data fetch someone/rows --out FOLDER\), then give --set"):
        recipe_of(folder, datasets=hub)
    made = recipe_of(folder, "hpclm.instructions.train=[rows.jsonl]", datasets=hub)["instructions"]
    assert (made["train"], made["template"]) == (("rows.jsonl",), "axolotl")
    own = recipe_of(folder, "datasets.0.path=data/words.jsonl", "datasets.0.split=train", datasets=hub)
    assert own["instructions"]["train"] == ("data/words.jsonl",)


def test_qlora_quantises_the_frozen_layers(folder: Path) -> None:
    made = recipe_of(folder, adapter="qlora", load_in_4bit=True)
    assert made["huggingface"]["quantization"] == "nf4"
    assert made["fine_tune"]["method"] == "lora"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": "qlora"}, "adapter qlora needs load_in_4bit: true"),
        ({"adapter": None, "load_in_4bit": True}, "a quantised model is not trained itself; give adapter: qlora"),
        ({"load_in_8bit": True}, "choose adapter: qlora and load_in_4bit"),
        ({"load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}}, "nf4 with double quantisation"),
        ({"rl": "dpo"}, "only supervised fine-tuning is imported"),
        ({"val_set_size": 0.05}, "rows are not split; cut the file in two"),
        ({"lora_target_linear": None, "lora_target_modules": "layers.[0-9]+.q"}, "is a pattern; write the endings"),
        ({"lora_r": None}, "lora_r is missing"),
        ({"learning_rate": None}, "learning_rate is missing"),
        ({"processor_type": "AutoProcessor"}, "give a model of text"),
        ({"context_parallel_size": 2}, "layers and sequences are not divided"),
        ({"plugins": ["axolotl.integrations.diffusion.DiffusionPlugin"]}, "changes what is trained"),
        ({"datasets": [{"path": "data/words.jsonl", "type": "completion"}]}, "by engine megatron; choose alpaca or"),
        ({"datasets": [{"path": "data/talk.json", "type": "sharegpt"}]}, "field_messages: conversations"),
        ({"datasets": [{"path": "data/words.jsonl", "type": {"format": "Q {instruction}"}}]}, "prompt of its own"),
        ({"datasets": [{"path": "data/words.jsonl", "type": "alpaca", "shards": 4}]}, "shards is not supported"),
        ({"datasets": [{"path": "data/words.jsonl", "type": "alpaca", "split": "train[:5]"}]}, "write the part into"),
        ({"datasets": [{**CHAT, "roles_to_train": ["user"]}]}, "roles_to_train is not supported; choose [assistant]"),
        ({"datasets": [{**CHAT, "train_on_eos": "all"}]}, "choose turn"),
        ({"datasets": [{**CHAT, "chat_template_jinja": "{{ x }}"}]}, "write the template into a file"),
        ({"datasets": [{"path": "data/words.jsonl", "type": "alpaca"}, CHAT]}, "cannot be one stage's rows: template"),
        ({"datasets": "words"}, "datasets must be a list"),
        ({"optimizer": "muon"}, "muon is not an optimizer that hpclm has"),
        ({"fsdp": ["full_shard"], "deepspeed": "ds.json"}, "fsdp and deepspeed exclude each other"),
        ({"fsdp_config": {"strange": 1}}, "fsdp_config.strange is not a setting of FSDP"),
        ({"comet_api_key": "abcdefgh12345678"}, "comet_api_key holds a secret"),
    ],
)
def test_what_would_change_the_result_is_refused_at_its_line(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(folder, **changes)
    assert words in str(caught.value)
    assert all(line.startswith(f"{folder / 'config.yaml'}:") for line in str(caught.value).splitlines())


def test_special_tokens_that_the_tokenizer_does_not_have(folder: Path) -> None:
    tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
    (note,) = load(write_config(folder, AXOLOTL, special_tokens=tokens)).doubtful_keys
    assert note.note == "the tokenizer's own are used, which should be these"
    (folder / "base").mkdir()
    (folder / "base" / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert load(write_config(folder, AXOLOTL, special_tokens=tokens)).doubtful_keys == ()
    with pytest.raises(RecipeError, match=r"special_tokens.eos_token is not the tokenizer's"):
        recipe_of(folder, special_tokens={"eos_token": "<end>"})
