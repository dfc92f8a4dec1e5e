"""Models of transformers as hpclm's checkpoints, and back, tensor by tensor, never as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import hpclm
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError, HpclmError
from hpclm.core.files import sync, write_json
from hpclm.core.records import to_dict
from hpclm.core.spec import ModelSpec
from hpclm.data.tokenizers import SentencePieceTokenizer, Tokenizer
from hpclm.formats.checkpoint_manifest import Manifest, Piece, StoredFile, StoredTensor, sha256_of
from hpclm.formats.huggingface.architectures import CONFIG, GENERATION_CONFIG, huggingface_config, model_spec, shortened
from hpclm.formats.huggingface.names import shapes, sources
from hpclm.formats.huggingface.weights import INDEX, SINGLE
from hpclm.formats.model_card import read_model_card
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from hpclm.formats.ranks.huggingface_weights import HuggingFaceWeights, parted
from hpclm.formats.ranks.tensor_file import Shape, write_streamed

FILE_BYTES = 5_000_000_000


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears under its name when all of it is written."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync(partial)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def in_files(tensors: dict[str, Shape]) -> list[dict[str, Shape]]:
    """As many tensors to a file as fit into `FILE_BYTES`."""
    files: list[dict[str, Shape]] = [{}]
    size = 0
    for name, shape in tensors.items():
        if files[-1] and size + shape.bytes > FILE_BYTES:
            files.append({})
            size = 0
        files[-1][name] = shape
        size += shape.bytes
    return files


def from_huggingface(source: Path, out: Path) -> str:
    """A checkpoint of hpclm's. Raises CheckpointError."""
    model = model_spec(source)
    weights = HuggingFaceWeights(source, model)
    wanted = {name: Shape(_dtype(weights, name), sizes) for name, sizes in shapes(model).items()}

    def beside(folder: Path) -> list[str]:
        return [*_take_tokenizer(source, folder), *shortened(source, model)]

    return write_checkpoint(out, model, wanted, weights.tensor, beside)


def write_checkpoint(
    out: Path,
    model: ModelSpec,
    wanted: dict[str, Shape],
    tensor: Callable[[str], torch.Tensor],
    beside: Callable[[Path], list[str]],
) -> str:
    """A checkpoint of these tensors, each asked for when it is written. Returns what was done.

    Args:
        beside: writes what else belongs into the folder, and returns notes.
    """
    with new_folder(out) as folder:
        files: dict[str, StoredFile] = {}
        tensors: dict[str, StoredTensor] = {}
        for number, group in enumerate(in_files(wanted)):
            name = f"shard-{number:05d}.safetensors"
            digest = write_streamed(folder / name, group, lambda key: tensor(key).contiguous())
            files[name] = StoredFile((folder / name).stat().st_size, digest)
            for key, shape in group.items():
                sizes = list(shape.sizes)
                piece = Piece(name, key, [0] * len(sizes), sizes)
                tensors[key] = StoredTensor(str(shape.dtype).removeprefix("torch."), sizes, [piece])
        paths = CheckpointFolder(folder)
        write_json(paths.model, to_dict(model))
        notes = beside(folder)
        for path in sorted(folder.iterdir()):
            if path.name not in files:
                files[path.name] = StoredFile(path.stat().st_size, sha256_of(path))
        state: dict[str, object] = {"step": 0, "val_loss": None, "best": []}
        write_json(paths.manifest, to_dict(Manifest(files, tensors, state)))
    return "\n".join([f"{out}: a checkpoint of {model.num_layers} layers", *notes])


def _dtype(weights: HuggingFaceWeights, name: str) -> torch.dtype:
    stored = weights.sources[name][1]
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    kinds = {one.dtype for one in stored}
    if len(kinds) != 1 or not kinds <= set(known):
        raise CheckpointError(f"{weights.folder}: {stored[0].name} is {', '.join(sorted(kinds))}; it must be a float")
    return known[kinds.pop()]


def _take_tokenizer(source: Path, folder: Path) -> list[str]:
    try:
        Tokenizer.from_huggingface(source).save(folder)
    except HpclmError as error:
        return [f"without a tokenizer: {error}"]
    return []


def to_huggingface(source: Path, out: Path) -> str:
    """A folder as transformers' save_pretrained writes one. Raises CheckpointError."""
    model = read_model_card(source, "give a checkpoint of a whole model")
    stored = WholeTensors(source)
    plan = sources(model)
    dtype = stored.dtype("embedding.word_embeddings.weight")
    try:
        tokenizer, missing = Tokenizer.load(source), ""
    except HpclmError as error:
        tokenizer, missing = None, f"without a tokenizer: {error}"
    tokens = {} if tokenizer is None else {"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.bos_id}
    config = huggingface_config(model, str(dtype).removeprefix("torch."), tokens)
    origin: dict[str, tuple[str, int]] = {}
    wanted: dict[str, Shape] = {}
    for name, one in plan.items():
        whole = torch.empty(shapes(model)[name], dtype=stored.dtype(name), device="meta")
        for place, part in enumerate(parted(one, whole, model)):
            wanted[one.names[place]] = Shape(part.dtype, tuple(part.shape))
            origin[one.names[place]] = name, place
    latest: tuple[str, list[torch.Tensor]] | None = None

    def tensor(name: str) -> torch.Tensor:
        nonlocal latest
        key, place = origin[name]
        if latest is None or latest[0] != key:
            rows = model.vocab_size if plan[key].vocabulary else None
            latest = key, parted(plan[key], stored.tensor(key, rows), model)
        return latest[1][place]

    with new_folder(out) as folder:
        _write_weights(folder, wanted, tensor)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        otherwise = ""
        if tokenizer is not None:
            _write_tokenizer(folder, tokenizer, model)
            otherwise = _split_otherwise(tokenizer, config["model_type"])
        _write_cards(folder, out.name, model, tokens, otherwise)
    found = [f"{out}: {config['architectures'][0]} for transformers", missing, otherwise]
    return "\n".join(filter(None, found))


def _write_weights(folder: Path, wanted: dict[str, Shape], tensor: Callable[[str], torch.Tensor]) -> None:
    groups = in_files(wanted)
    names = [SINGLE]
    if len(groups) > 1:
        names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    for name, group in zip(names, groups, strict=True):
        write_streamed(folder / name, group, tensor, {"format": "pt"})
        sync(folder / name)
    if len(groups) > 1:
        total = sum(shape.bytes for shape in wanted.values())
        mapping = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        index = {"metadata": {"total_size": total}, "weight_map": mapping}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, model: ModelSpec) -> None:
    tokenizer.save(folder)
    sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    by_id = {number: text for text, number in tokenizer.special_ids.items()}
    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if sentencepiece else "PreTrainedTokenizerFast",
        "model_max_length": model.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "eos_token": by_id.get(tokenizer.eos_id),
        "bos_token": by_id.get(tokenizer.bos_id),
        "pad_token": by_id.get(tokenizer.pad_id),
    }
    kept = {key: value for key, value in settings.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n")


# models/qwen2/tokenization_qwen2.py of transformers 5
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACES = "½  x"


def _split_otherwise(tokenizer: Tokenizer, kind: str) -> str:
    """What transformers' AutoTokenizer does to texts that this tokenizer does not; empty: nothing."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        if tokenizer.processor.normalize(_SPACES).replace("▁", " ").lstrip() == _SPACES:
            return ""
        return (
            "the SentencePiece model normalises texts (as two spaces to one), which transformers' LlamaTokenizer does "
            "not: for the ids of training use the package sentencepiece with tokenizer.model"
        )
    if kind != "qwen2" or json.dumps(_QWEN, ensure_ascii=False) in tokenizer.backend.to_str():
        return ""
    return (
        "transformers 5 gives every Qwen2 model Qwen's splitting of texts, which is not this tokenizer's: load it by "
        "PreTrainedTokenizerFast.from_pretrained, not by AutoTokenizer"
    )


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

{size:,} parameters, {layers} layers of width {hidden}, {positions:,} positions, {vocabulary:,} tokens.
Trained with hpclm {version} on megatron-core and converted to {architecture}.

```python
from transformers import AutoModelForCausalLM, {tokenizer}
tokenizer = {tokenizer}.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
```
"""


def _write_cards(folder: Path, name: str, model: ModelSpec, tokens: dict[str, int], otherwise: str) -> None:
    """generation_config.json and README.md."""
    (folder / GENERATION_CONFIG).write_text(json.dumps(tokens, indent=2) + "\n")
    size = sum(torch.Size(sizes).numel() for sizes in shapes(model).values())
    config = json.loads((folder / CONFIG).read_text())
    text = _CARD.format(
        name=name,
        size=size,
        layers=model.num_layers,
        hidden=model.hidden_size,
        positions=model.max_position_embeddings,
        vocabulary=model.vocab_size,
        version=hpclm.__version__,
        architecture=config["architectures"][0],
        tokenizer="PreTrainedTokenizerFast" if "PreTrainedTokenizerFast" in otherwise else "AutoTokenizer",
    )
    if otherwise:
        text += f"\n{otherwise[0].upper()}{otherwise[1:]}.\n"
    (folder / "README.md").write_text(text)
