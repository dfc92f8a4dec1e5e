"""What a file or folder contains, without torch: NeMo archives, hpclm checkpoints, models of
transformers, checkpoints of Megatron-LM, PEFT adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_json
from hpclm.core.records import to_dict
from hpclm.formats.archive import Archive
from hpclm.formats.checkpoint_manifest import read_manifest
from hpclm.formats.checkpoint_pointers import pointed
from hpclm.formats.format_guard import guarded
from hpclm.formats.huggingface.architectures import ADAPTER, ADAPTER_CONFIG, is_huggingface
from hpclm.formats.huggingface.architectures import model_spec as huggingface_spec
from hpclm.formats.huggingface.weights import stored_tensors
from hpclm.formats.megatron import model_weights as megatron
from hpclm.formats.nemo.gpt_weights import is_archive, read_weights
from hpclm.formats.nemo.model_config import model_spec, read_config
from hpclm.formats.nemo.prompt_tables import is_prompt_archive, read_tables
from hpclm.formats.safetensors_header import header


@guarded("an archive, a checkpoint or an adapter")
def look(path: Path) -> dict[str, Any]:
    """`kind` (nemo-gpt, nemo-prompts, hpclm-checkpoint, huggingface, megatron, peft-adapter), `facts` and `tensors`
    [name, dtype, shape].

    Raises CheckpointError for anything else.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist")
    if is_archive(str(path)):
        return _nemo_prompts(path) if is_prompt_archive(str(path)) else _nemo_gpt(path)
    if (path / ADAPTER_CONFIG).is_file():
        return _adapter(path)
    if is_huggingface(str(path)):
        tensors = [[one.name, one.dtype, list(one.shape)] for _, one in sorted(stored_tensors(path).items())]
        return {"kind": "huggingface", "facts": to_dict(huggingface_spec(path)), "tensors": tensors}
    iteration = megatron.iteration_folder(path)
    if iteration is not None:
        return _megatron(iteration)
    for folder in (path, pointed(path, "best"), pointed(path, "latest")):
        if folder is not None and CheckpointFolder(folder).manifest.is_file():
            return _checkpoint(folder)
    raise CheckpointError(
        f"{path}: not a .nemo archive, hpclm checkpoint, Hugging Face model, PEFT adapter or checkpoint of Megatron-LM"
    )


def _megatron(folder: Path) -> dict[str, Any]:
    with Archive(folder) as archive:
        model = megatron.read_model(archive)
        weights = megatron.read_weights(archive, model)
        tensors = [[name, one.dtype, list(one.shape)] for name, one in sorted(weights.items())]
    return {"kind": "megatron", "facts": {"checkpoint": str(folder), **to_dict(model)}, "tensors": tensors}


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


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return found
