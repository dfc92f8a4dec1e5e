"""What a file or folder contains, without torch: NeMo archives, hpclm checkpoints, PEFT adapters."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file, read_json
from hpclm.core.records import from_dict, to_dict
from hpclm.formats.checkpoint_manifest import read_manifest
from hpclm.formats.checkpoint_pointers import pointed
from hpclm.formats.format_guard import guarded
from hpclm.formats.nemo.archive import Archive
from hpclm.formats.nemo.gpt_weights import is_archive, read_weights
from hpclm.formats.nemo.model_config import model_spec, read_config
from hpclm.formats.nemo.prompt_tables import is_prompt_archive, read_tables

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
_MAX_HEADER = 100 << 20


@guarded("an archive, a checkpoint or an adapter")
def look(path: Path) -> dict[str, Any]:
    """`kind` (nemo-gpt, nemo-prompts, hpclm-checkpoint, peft-adapter), `facts` and `tensors` [name, dtype, shape].

    Raises CheckpointError for anything else.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist")
    if is_archive(str(path)):
        return _nemo_prompts(path) if is_prompt_archive(str(path)) else _nemo_gpt(path)
    if (path / ADAPTER_CONFIG).is_file():
        return _adapter(path)
    for folder in (path, pointed(path, "best"), pointed(path, "latest")):
        if folder is not None and CheckpointFolder(folder).manifest.is_file():
            return _checkpoint(folder)
    raise CheckpointError(f"{path}: not a .nemo archive, hpclm checkpoint or PEFT adapter")


def _nemo_gpt(path: Path) -> dict[str, Any]:
    with Archive(path) as archive:
        model = model_spec(archive)
        weights = read_weights(archive, model.num_attention_heads, gated=model.gated)
        tensors = [[name, weight.dtype, list(weight.shape)] for name, weight in sorted(weights.items())]
        config = read_config(archive)
    facts = {"nemo_version": config.get("nemo_version"), **to_dict(model)}
    return {"kind": "nemo-gpt", "facts": facts, "tensors": tensors}


def _nemo_prompts(path: Path) -> dict[str, Any]:
    with Archive(path) as archive:
        tables = read_tables(archive)
        config = read_config(archive)
    tensors = [[task, facts.dtype, list(facts.shape)] for task, facts in tables.items()]
    facts = {
        "virtual_prompt_style": config.get("virtual_prompt_style"),
        "language_model": config.get("language_model_path"),
        "task_templates": config.get("task_templates") or [],
    }
    return {"kind": "nemo-prompts", "facts": facts, "tensors": tensors}


def _checkpoint(folder: Path) -> dict[str, Any]:
    paths = CheckpointFolder(folder)
    facts: dict[str, Any] = {"checkpoint": str(folder)}
    for card in (paths.model, paths.prompts):
        if card.is_file():
            facts[card.stem] = _json(card)
    stored = sorted(read_manifest(folder).tensors.items())
    tensors = [[name, one.dtype, one.shape] for name, one in stored if not name.startswith("optimizer.")]
    return {"kind": "hpclm-checkpoint", "facts": facts, "tensors": tensors}


def _adapter(path: Path) -> dict[str, Any]:
    tensors = [[name, one.dtype, one.shape] for name, one in header(path / ADAPTER).items()]
    return {"kind": "peft-adapter", "facts": _json(path / ADAPTER_CONFIG), "tensors": tensors}


@dataclass(frozen=True)
class Entry:
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]


def header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name. Raises CheckpointError."""
    try:
        with open_file(path) as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MAX_HEADER:
                raise ValueError("its header is too large")
            found = json.loads(stream.read(size))
        tensors = ((name, one) for name, one in found.items() if name != "__metadata__")
        return {name: from_dict(Entry, one, ignore_unknown=True, where=name) for name, one in tensors}
    except (OSError, ValueError, struct.error, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return found
