"""A small whole recipe with its files, for tests to modify."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

ROW = {"taskname": "first", "words": "a b c", "answer": "a"}

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "sample",
    "model": {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64},
    "tokenizer": {"train": {"vocab_size": 512}},
    "parallel": {"tensor": 2},
    "resources": {"nodes": 1, "devices_per_node": 2, "device": "cpu", "time_limit_min": 10},
    "container": {
        "image": "nvcr.io/nvidia/nemo:23.02",
        "mounts": [{"source": "text", "target": "/text"}],
        "workdir": "/text",
        "environment": {"NCCL_DEBUG": "INFO"},
    },
    "batch": {"global": 8, "micro": 4},
    "trainer": {"max_steps": 10},
    "optim": {"lr": 0.001, "schedule": {"name": "cosine", "warmup_steps": 2}},
    "checkpoint": {"keep_last": 2},
    "text": {"paths": ["text"], "pattern": "*.txt", "seq_length": 32},
    "data": {
        "train": ["train.jsonl"],
        "validation": ["validation.jsonl"],
        "test": ["test.jsonl"],
        "max_seq_length": 48,
    },
    "task_templates": [
        {
            "taskname": "first",
            "prompt_template": "<|VIRTUAL_PROMPT_0|> {words} = {answer}",
            "total_virtual_tokens": 6,
            "virtual_token_splits": [6],
            "truncate_field": "words",
        }
    ],
    "prompt": {"encoder": "tpmlp", "encoder_hidden": 32},
    "generation": {"max_new_tokens": 8},
    "stages": [
        {"name": "pretrain", "task": "pretrain"},
        {"name": "ptune", "task": "p-tuning", "base": "pretrain"},
        {"name": "evaluate", "task": "evaluate", "prompts": "ptune"},
    ],
}


def write_files(folder: Path) -> None:
    """The rows and the text that the sample names."""
    rows = "".join(json.dumps(ROW) + "\n" for _ in range(16))
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_text(rows)
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "a.txt").write_text("some text\nto read\n")


def write(folder: Path, recipe: dict[str, Any] | str | bytes, name: str = "recipe.yaml") -> Path:
    """The recipe as a file in `folder`, its data next to it."""
    write_files(folder)
    path = folder / name
    if isinstance(recipe, bytes):
        path.write_bytes(recipe)
    else:
        path.write_text(recipe if isinstance(recipe, str) else dump(recipe), encoding="utf-8")
    return path


def dump(recipe: dict[str, Any]) -> str:
    """YAML in the recipe's own order."""
    text: str = yaml.safe_dump(recipe, sort_keys=False, width=1000)
    return text


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The sample with values at dotted keys; list entries by number. `DROP` removes."""
    recipe = copy.deepcopy(RECIPE)
    for key, value in changes:
        *path, last = key.split(".")
        at: Any = recipe
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if value is DROP:
            del at[last]
        elif isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    return recipe


DROP = object()


def single(task: str = "p-tuning", **sections: Any) -> dict[str, Any]:
    """The sample as one stage on a checkpoint that `write_checkpoint` makes."""
    recipe = copy.deepcopy(RECIPE)
    del recipe["stages"], recipe["tokenizer"], recipe["text"], recipe["generation"]
    recipe["model"]["checkpoint"] = "base"
    return {**recipe, "task": task, **sections}


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    """An hpclm checkpoint's model.json and tokenizer.json (no weights: the plan reads none)."""
    path = folder / "base"
    path.mkdir(exist_ok=True)
    model = {
        "num_layers": 4,
        "hidden_size": 64,
        "ffn_hidden_size": 256,
        "num_attention_heads": 4,
        "num_query_groups": 4,
        "kv_channels": 16,
        "max_position_embeddings": 64,
        "vocab_size": 500,
        "padded_vocab_size": 512,
        **changes,
    }
    (path / "model.json").write_text(json.dumps(model))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 499}]}))
    return path
