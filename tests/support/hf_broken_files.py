"""A small recipe of engine hf with its files, written without transformers, for tests to break."""

from __future__ import annotations

import copy
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.broken_case import Case
from tests.support.hf_models import CHATML
from tests.support.samples import DROP, dump

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "tune",
    "task": "fine-tune",
    "engine": "hf",
    "model": {"checkpoint": "model"},
    "resources": {"devices_per_node": 2, "device": "cpu", "time_limit_min": 10},
    "batch": {"global": 8, "micro": 2},
    "trainer": {"max_steps": 10, "precision": "fp32"},
    "optim": {"lr": 0.0001},
    "instructions": {"train": ["train.jsonl"], "validation": ["validation.jsonl"], "max_seq_length": 64},
    "fine_tune": {"method": "lora"},
    "sharding": {"strategy": "ddp"},
}
ROW = {"instruction": "Repeat the words.", "input": "a b", "output": "a b"}
ROWS = "".join(json.dumps(ROW) + "\n" for _ in range(16))
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 128,
}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
             "added_tokens": [{"id": 2, "content": "<|im_end|>", "special": True}]}  # fmt: skip
TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
SHAPES = {
    "model.embed_tokens": (320, 8),
    **{f"model.layers.0.self_attn.{name}": (8, 8) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"model.layers.0.mlp.{name}": (16, 8) for name in ("gate_proj", "up_proj")},
    "model.layers.0.mlp.down_proj": (8, 16),
    "lm_head": (320, 8),
}

# What stands in a file: text, bytes, JSON; None: no file; or a function that makes whatever it is.
Content = str | bytes | dict[str, Any] | list[Any] | None | Callable[[Path], object]


def safetensors(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> bytes:
    """Zeros in safetensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for one in shape:
            size *= one
        header[f"{name}.weight"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return framed(json.dumps(header).encode(), at)


def framed(header: bytes, size: int = 0) -> bytes:
    """A header, whatever it says, and `size` bytes behind it."""
    return struct.pack("<Q", len(header)) + header + bytes(size)


def put(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        path.unlink(missing_ok=True)
        content(path)
    elif content is None:
        path.unlink(missing_ok=True)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def write_hf(folder: Path, recipe: Mapping[str, Any], files: Mapping[str, Content] | None = None) -> Path:
    """The recipe with its rows and its model; `files` replace or add to them."""
    whole: dict[str, Content] = {
        "train.jsonl": ROWS,
        "validation.jsonl": ROWS,
        "test.jsonl": ROWS,
        "model/config.json": dict(CONFIG),
        "model/tokenizer.json": TOKENIZER,
        "model/tokenizer_config.json": TOKENIZER_CONFIG,
        "model/model.safetensors": safetensors(),
    }
    for name, content in {**whole, **(files or {})}.items():
        put(folder / name, content)
    path = folder / "recipe.yaml"
    path.write_text(dump(dict(recipe)), encoding="utf-8")
    return path


def hf_recipe(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe with values at dotted keys; `DROP` removes."""
    made = copy.deepcopy(RECIPE)
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        at: Any = made
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if value is DROP:
            del at[last]
        else:
            at[last] = copy.deepcopy(value)
    return made


def hf_case(
    id: str,  # noqa: A002
    changes: Mapping[str, Any] | None = None,
    *expected: str,
    files: Mapping[str, Content] | None = None,
    faults: int = 1,
) -> Case:
    return Case(f"hf-{id}", lambda folder: write_hf(folder, hf_recipe(changes), files), expected, faults=faults)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def empty_folder(path: Path) -> None:
    path.mkdir()


def socket_file(path: Path) -> None:
    where = Path.cwd()
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # a socket's name is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(where)


def parquet(answer: Any) -> Callable[[Path], object]:
    """A parquet file of one row with such an answer; of one that is a large number as a time far away."""

    def build(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        kind = pyarrow.timestamp("ms") if isinstance(answer, int) else None
        column = pyarrow.array([answer], kind)
        pyarrow.parquet.write_table(pyarrow.table({"instruction": ["a"], "output": column}), path)

    return build
