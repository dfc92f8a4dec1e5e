"""TrainingArguments and SFTConfig become a recipe; the model and the rows come from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpclm.core.errors import RecipeError
from hpclm.recipe.loading import translated
from tests.support.fine_tuning_files import TRAINER, write_beside, write_config, write_json

GIVEN = ["hpclm.model.checkpoint=base", "hpclm.instructions.train=[data/words.jsonl]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_beside(tmp_path)
    return tmp_path


def recipe_of(folder: Path, *overrides: str, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = translated(write_json(folder, TRAINER, **changes), [*GIVEN, *overrides])[1].plain()
    return found


def test_the_whole_import(folder: Path) -> None:
    assert recipe_of(folder) == {
        "version": 1,
        "name": "arguments",
        "task": "fine-tune",
        "engine": "hf",
        "batch": {"global": 4, "micro": 4},
        "trainer": {"max_steps": 30, "seed": 7},
        "optim": {
            "name": "adamw",
            "lr": 1e-4,
            "weight_decay": 0.0,
            "betas": (0.9, 0.999),
            "epsilon": 1e-8,
            "schedule": {"name": "linear", "from_zero": True, "warmup_steps": 3},
        },
        "checkpoint": {"save_interval_steps": 500},
        "tracking": {"tensorboard": True},
        "model": {"checkpoint": "base"},
        "instructions": {"train": ("data/words.jsonl",)},
    }


def test_what_is_missing_is_said(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        translated(write_json(folder, TRAINER))
    assert str(caught.value).splitlines() == [
        f"{folder / 'arguments.json'}:1: the file names no model; give --set hpclm.model.checkpoint=FOLDER",
        f"{folder / 'arguments.json'}:1: the file names no rows; give --set 'hpclm.instructions.train=[FILE]'",
    ]


@pytest.mark.parametrize(
    ("changes", "section", "wanted"),
    [
        ({"warmup_steps": 0.1}, "optim", {"schedule": {"name": "linear", "from_zero": True, "warmup_ratio": 0.1}}),
        ({"warmup_steps": 0, "warmup_ratio": 0.2}, "optim", {
            "schedule": {"name": "linear", "from_zero": True, "warmup_ratio": 0.2}}),
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}, "optim", {
            "min_lr": 1e-5}),
        ({"optim": "sgd"}, "optim", {"name": "sgd", "betas": (0.0, 0.999)}),
        ({"optim": "lion_32bit"}, "optim", {"name": "lion"}),
        ({"max_steps": -1, "num_train_epochs": 3}, "trainer", {"max_epochs": 3}),
        ({"eval_strategy": "steps", "eval_steps": 5}, "trainer", {"val_check_interval": 5}),
        ({"evaluation_strategy": "epoch"}, "trainer", {"val_check_interval": 1.0}),
        ({"max_grad_norm": 0.5, "full_determinism": True}, "trainer", {
            "gradient_clip_norm": 0.5, "deterministic": True}),
        ({"use_cpu": True}, "resources", {"device": "cpu"}),
        ({"fsdp": [], "fsdp_config": {"min_num_params": 0, "xla": False}, "gradient_checkpointing": True}, "sharding", {
            "checkpointing": True}),
        ({"max_length": 64, "completion_only_loss": True, "packing": True}, "instructions", {
            "max_seq_length": 64, "learn": "answers", "packing": True}),
    ],
)  # fmt: skip
def test_a_key_is_taken(folder: Path, changes: dict[str, Any], section: str, wanted: dict[str, Any]) -> None:
    made = recipe_of(folder, **changes)[section]
    assert {key: made.get(key) for key in wanted} == wanted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packing": False}, "TRL learns all of messages"),
        ({"completion_only_loss": True, "packing": True, "packing_strategy": "wrapped"}, "choose bfd"),
        ({"completion_only_loss": True, "truncation_mode": "keep_end"}, "of long rows the start is kept"),
        ({"completion_only_loss": True, "loss_type": "dft"}, "dft is not supported"),
        ({"load_in_4bit": True}, "a quantised model is not trained itself; set use_peft"),
        ({"load_in_4bit": True, "use_peft": True, "bnb_4bit_quant_type": "fp4"}, "fp4 is not supported; choose nf4"),
        ({"load_in_8bit": True}, "frozen layers are quantised to 4 bits; choose load_in_4bit"),
        ({"neftune_noise_alpha": 5}, "there is no NEFTune noise"),
        ({"optim": "adamw_torch_4bit"}, "is not an optimizer that hpclm has"),
        ({"optim_args": "betas=(0.9,0.95)"}, "optimizers have no other options"),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 0}, "inverse_sqrt without a warm-up"),
        ({"lr_scheduler_kwargs": {"num_cycles": 3}, "lr_scheduler_type": "cosine_with_restarts"}, "num_cycles 3 of"),
        ({"eval_strategy": "steps", "eval_steps": 0.5, "max_steps": -1}, "0.5 is 1.5 epochs"),
        ({"hub_token": "hf_0123456789abcdefABCD"}, "hub_token holds a secret"),
    ],
)
def test_what_would_change_the_result_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(folder, **changes)
    assert words in str(caught.value)


def test_the_yaml_of_trls_command_line(folder: Path) -> None:
    sample = {
        "model_name_or_path": "base", "dataset_name": "data/words.jsonl", "learning_rate": 1e-4, "use_peft": True,
        "lora_r": 8, "lora_target_modules": ["q_proj"], "assistant_only_loss": True, "num_train_epochs": 2,
    }  # fmt: skip
    made = translated(write_config(folder, sample))[1].plain()
    assert made["fine_tune"]["lora"] == {"rank": 8, "alpha": 32.0, "dropout": 0.05, "targets": ("q_proj",)}
    assert made["instructions"] == {"train": ("data/words.jsonl",), "max_seq_length": 1024, "learn": "answers"}
    # SFTConfig's own defaults
    assert (made["trainer"]["precision"], made["sharding"]) == ("bf16", {"checkpointing": True})
    with pytest.raises(RecipeError, match="hpclm data fetch someone/rows --out FOLDER"):
        translated(write_config(folder, sample, dataset_name="someone/rows"))
