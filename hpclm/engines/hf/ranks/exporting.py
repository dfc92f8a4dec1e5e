"""Folders in transformers' format from what has been tuned: a checkpoint's weights as they are, or an adapter joined
with its base model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError, DataError
from hpclm.core.files import read_object, umask, write_json, write_text
from hpclm.core.fine_tune_spec import HuggingFaceSpec, InstructionData, PromptTemplate
from hpclm.data.ranks.instruction_tokens import InstructionEncoder
from hpclm.engines.hf.ranks import adapters
from hpclm.engines.hf.ranks.base_models import beside, digest, model_folder
from hpclm.engines.hf.ranks.hf_loading import WeightFiles, empty_model, load_tokenizer, weights_of
from hpclm.engines.hf.ranks.precision import dtype_of
from hpclm.engines.hf.ranks.tuned_adapters import attached, base_of
from hpclm.formats.huggingface.weights import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
# Of the largest logit: above it, the joined model does not compute what the adapter did.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written, and from what. `difference`: the largest of a logit between adapter and joined model, fp32."""

    folder: str
    source: str
    base: str
    base_digest: str
    method: str
    dtype: str
    difference: float | None = None


def export(source: Path, out: Path, dtype: str, *, remote_code: bool = False) -> Exported:
    """A folder that transformers loads. `source`: a stage's checkpoints, one of them, or PEFT's adapter.

    Raises CheckpointError; then there is no `out`.
    """
    folder = model_folder(str(source))
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        base = base_of(folder)
        made = _whole(folder, partial, dtype) if base is None else _joined(folder, base, partial, dtype, remote_code)
        # of an adapter alone, what its model has
        for path in [*(beside(base, code=remote_code) if base else ()), *beside(folder, code=remote_code)]:
            if path.name != "config.json":
                shutil.copyfile(path, partial / path.name)
        _note_ends(folder, partial)
        write_text(partial / "README.md", _card(made))
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Exported(**{**vars(made), "folder": str(out)})


def _whole(folder: Path, out: Path, dtype: str) -> Exported:
    """The weights of a checkpoint, a file at a time."""
    card = read_object(CheckpointFolder(folder).fine_tuned)
    if card is None:
        raise CheckpointError(
            f"{folder}: is neither an adapter nor what a fine-tune stage has made; a checkpoint of engine megatron: "
            "hpclm model convert … --to huggingface"
        )
    files = WeightFiles(folder)
    write_files(out, ((name, files(name)) for name in sorted(files.names)), dtype_of(dtype))
    _configuration(folder, out, dtype)
    base, base_digest = str(card.get("base", "")), str(card.get("base_digest", ""))
    return Exported(str(out), str(folder), base, base_digest, str(card.get("method", "full")), dtype)


def _joined(folder: Path, base: Path, out: Path, dtype: str, remote_code: bool) -> Exported:
    """The base model with the adapter's update in its weights, added in fp32."""
    kind = str((read_object(folder / adapters.CONFIG) or {}).get("peft_type"))
    if kind != "LORA":
        raise CheckpointError(f"{folder}: is {kind}, which cannot be joined with the weights; use it as an adapter")
    model = empty_model(base, HuggingFaceSpec(attention="sdpa", remote_code=remote_code))
    weights_of(model, base, torch.device("cpu"), remote_code=remote_code).fill([("", model)], torch.float32)
    model.tie_weights()
    tuned = attached(model, folder, "cpu")
    of_tokenizer = folder if (folder / "tokenizer.json").is_file() else base
    before = _logits(tuned, of_tokenizer, remote_code)
    whole: Any = tuned.merge_and_unload(safe_merge=True)
    after = _logits(whole, of_tokenizer, remote_code)
    difference = float((before - after).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(before.abs().max())):
        raise CheckpointError(f"{folder}: the joined model's logits differ by {difference:.2g} from the adapter's")
    state = whole.state_dict()
    pairs: dict[str, str] = dict(getattr(whole, "all_tied_weights_keys", None) or {})
    # one of two that were tied may have been trained by itself (modules_to_save)
    places = {name: one.data_ptr() for name, one in state.items()}
    tied = {name for name, other in pairs.items() if places.get(name) == places.get(other)}
    write_files(out, ((name, one) for name, one in state.items() if name not in tied), dtype_of(dtype))
    _configuration(base, out, dtype, untied=len(tied) < len(pairs))
    return Exported(str(out), str(folder), str(base), digest(base), "lora", dtype, difference)


@torch.inference_mode()
def _logits(model: Any, folder: Path, remote_code: bool) -> Tensor:
    """Of a short text."""
    tokenizer = load_tokenizer(folder, remote_code=remote_code)
    tokens = tokenizer("The quick brown fox jumps over the lazy dog.", return_tensors="pt")["input_ids"]
    found: Tensor = model(input_ids=tokens).logits
    return found


def write_files(out: Path, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, limit: int = SHARD_BYTES) -> None:
    """model.safetensors, or several and their index; never more than one file in memory."""
    names: list[list[str]] = []
    total = 0
    for number, some in enumerate(_in_shards(tensors, dtype, limit)):
        save_file(some, out / _shard_name(number), metadata={"format": "pt"})
        names.append(sorted(some))
        total += sum(one.numel() * one.element_size() for one in some.values())
    if len(names) == 1:
        (out / _shard_name(0)).replace(out / SINGLE)
    else:
        final = [f"model-{number + 1:05d}-of-{len(names):05d}.safetensors" for number in range(len(names))]
        for number, name in enumerate(final):
            (out / _shard_name(number)).replace(out / name)
        mapping = {name: file for some, file in zip(names, final, strict=True) for name in some}
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(mapping.items()))})
    for path in out.glob("*.safetensors"):
        path.chmod(0o666 & ~umask())


def _shard_name(number: int) -> str:
    return f".part-{number:05d}"


def _in_shards(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, limit: int) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    size = 0
    for name, one in tensors:
        value = one.detach().to(dtype if one.is_floating_point() else one.dtype).contiguous()
        own = value.numel() * value.element_size()
        if held and size + own > limit:
            yield held
            held, size = {}, 0
        held[name], size = value.clone() if value.data_ptr() == one.data_ptr() else value, size + own
    yield held


def _configuration(folder: Path, out: Path, dtype: str, *, untied: bool = False) -> None:
    """config.json with the dtype of the weights; `untied`: embeddings and output layer are no longer the same."""
    config = read_object(folder / "config.json") or {}
    config.pop("torch_dtype", None)
    if untied:
        config["tie_word_embeddings"] = False
    config["dtype"] = str(dtype_of(dtype)).removeprefix("torch.")
    write_json(out / "config.json", config)


def _note_ends(folder: Path, out: Path) -> None:
    """generation_config.json names all that ends an answer; with the base model's alone, a model tuned on a chat
    template that ends answers otherwise would never stop."""
    template = (read_object(CheckpointFolder(folder).fine_tuned) or {}).get("template")
    if template not in get_args(PromptTemplate):
        return
    data = InstructionData(template=cast(PromptTemplate, template))
    try:
        ends = InstructionEncoder(load_tokenizer(out), data).ends()
    except DataError:  # a chat template that was given apart
        return
    config = read_object(out / "generation_config.json") or {}
    named = config.get("eos_token_id")
    found = named if isinstance(named, list) else [] if named is None else [named]
    every = list(dict.fromkeys([*found, *ends]))
    write_json(out / "generation_config.json", {**config, "eos_token_id": every if len(every) > 1 else every[0]})


def _card(made: Exported) -> str:
    told = {key: value for key, value in vars(made).items() if key != "folder" and value is not None}
    listed = "\n".join(f"- {key}: {json.dumps(value)}" for key, value in told.items())
    return f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\nTuned with hpclm.\n\n{listed}\n"


def exported(source: str, out: str, dtype: str, remote_code: bool) -> dict[str, Any]:
    """`export` for the command line, on this machine's CPU."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return dict(vars(export(Path(source), Path(out), dtype, remote_code=remote_code)))
