"""PEFT's adapters and hpclm's checkpoints, with changed JSON."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import odd_values, raw_bytes, trees
from tests.support import samples


def adapter(rng: Random, folder: Path) -> str:
    path = folder / "adapter"
    path.mkdir()
    config: dict[str, Any] = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10, "base_model_name_or_path": "x"}
    header: dict[str, Any] = {
        "prompt_embeddings": {"dtype": "F32", "shape": [10, 16], "data_offsets": [0, 640]},
        "__metadata__": {"a": "b"},
    }
    shown = (
        trees.json_text(trees.mutated(header, rng, odd_values.json_value)) if rng.random() < 0.7 else json.dumps(header)
    )
    text = raw_bytes.encoded(shown)
    size = (
        len(text)
        if rng.random() < 0.85
        else rng.choice((0, 1, 2**63, 2**64 - 1, (100 << 20), len(text) - 1, len(text) + 9))
    )
    data = struct.pack("<Q", size) + text + bytes(640)
    if rng.random() < 0.15:
        data = raw_bytes.damaged(data, rng, 2)
    (path / "adapter_model.safetensors").write_bytes(data)
    _json(path / "adapter_config.json", config, rng, 0.3)
    if rng.random() < 0.1:
        raw_bytes.replace_special(path / rng.choice(("adapter_model.safetensors", "adapter_config.json")), rng)
    return "adapter"


def checkpoint(rng: Random, folder: Path) -> str:
    base = samples.write_checkpoint(folder)
    step = base / "step-00000002"
    step.mkdir()
    piece = {"file": "a.safetensors", "name": "w", "offset": [0, 0], "shape": [4, 4]}
    manifest = {
        "format": "hpclm-checkpoint",
        "version": 1,
        "files": {"a.safetensors": {"bytes": 64, "sha256": "0" * 64}},
        "tensors": {"w": {"dtype": "F32", "shape": [4, 4], "pieces": [piece]}},
        "state": {"step": 2},
    }
    model = json.loads((base / "model.json").read_text())
    pointer = {"checkpoint": "step-00000002", "step": 2, "val_loss": 0.5}
    chosen = rng.randrange(5)
    _json(step / "manifest.json", manifest, rng, 0.9 * (chosen == 0))
    _json(step / "model.json", model, rng, 0.9 * (chosen == 1))
    _json(step / "prompts.json", {"tasks": ["first"], "virtual_tokens": 6}, rng, 0.9 * (chosen == 2))
    _json(base / "best.json", pointer, rng, 0.9 * (chosen == 3))
    _json(base / "latest.json", pointer, rng, 0.9 * (chosen == 4))
    if rng.random() < 0.12:
        name = rng.choice(("best.json", "latest.json", "step-00000002/manifest.json", "step-00000002/model.json"))
        raw_bytes.replace_special(base / name, rng)
    return rng.choice(("base", "base/step-00000002"))


def _json(path: Path, value: Any, rng: Random, probability: float) -> None:
    if rng.random() >= probability:
        path.write_text(json.dumps(value))
        return
    text = trees.json_text(trees.mutated(value, rng, odd_values.json_value))
    data = raw_bytes.encoded(text)
    path.write_bytes(raw_bytes.damaged(data, rng, 3) if rng.random() < 0.2 else data)
