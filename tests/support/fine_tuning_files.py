"""Configurations of other fine-tuning tools, as their users write them, and what lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

LLAMA_FACTORY: dict[str, Any] = {
    "model_name_or_path": "base", "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 16,
    "lora_target": "q_proj,v_proj", "dataset": "words", "template": "alpaca", "cutoff_len": 96, "output_dir": "out",
    "logging_steps": 5, "save_steps": 50, "report_to": "none", "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4, "learning_rate": 2e-4, "num_train_epochs": 2.0, "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1, "bf16": True,
}  # fmt: skip
AXOLOTL: dict[str, Any] = {
    "base_model": "base", "datasets": [{"path": "data/words.jsonl", "type": "alpaca"}], "val_set_size": 0,
    "output_dir": "out", "adapter": "lora", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05,
    "lora_target_linear": True, "sequence_len": 96, "sample_packing": True, "gradient_accumulation_steps": 2,
    "micro_batch_size": 3, "num_epochs": 1, "optimizer": "adamw_torch", "lr_scheduler": "cosine",
    "learning_rate": 3e-4, "bf16": "auto", "tf32": False, "gradient_checkpointing": True, "evals_per_epoch": 4,
    "saves_per_epoch": 1, "weight_decay": 0.1, "special_tokens": {"pad_token": "<|pad|>"},
}  # fmt: skip
TRAINER: dict[str, Any] = {
    "output_dir": "out", "per_device_train_batch_size": 4, "learning_rate": 1e-4, "max_steps": 30,
    "lr_scheduler_type": "linear", "warmup_steps": 3, "optim": "adamw_torch_fused", "weight_decay": 0.0,
    "bf16": False, "fp16": False, "seed": 7, "report_to": ["tensorboard"], "deepspeed": None,
    "hub_token": "<HUB_TOKEN>",
}  # fmt: skip
INFO: dict[str, Any] = {
    "words": {"file_name": "words.jsonl"},
    "held_out": {"file_name": "held_out.jsonl"},
    "talk": {"file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
    "on_hub": {"hf_hub_url": "someone/rows"},
}
ROWS = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("path", "name", "self", "node")]


def write_beside(folder: Path, *, info: dict[str, Any] | None = None) -> None:
    """`data/` with rows and dataset_info.json."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for name in ("words", "held_out"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    talk = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hello"}]
    (data / "talk.json").write_text(json.dumps([{"conversations": talk}]))
    (data / "dataset_info.json").write_text(json.dumps(INFO if info is None else info))


def write_config(folder: Path, sample: dict[str, Any], **changes: Any) -> Path:
    """The sample with values changed; None takes a key out."""
    made = {**sample, **changes}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in made.items() if value is not None}, sort_keys=False))
    return path


def write_json(folder: Path, sample: dict[str, Any], **changes: Any) -> Path:
    path = folder / "arguments.json"
    path.write_text(json.dumps({**sample, **changes}, indent=2))
    return path
