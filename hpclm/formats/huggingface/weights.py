"""Where the tensors of a folder in transformers' format lie: one safetensors file, or several with an index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object
from hpclm.core.spec import ModelSpec
from hpclm.formats.huggingface.architectures import model_spec
from hpclm.formats.huggingface.names import Source, shapes, sources
from hpclm.formats.safetensors_header import header

_LONGEST_NAME = 255
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype as safetensors calls it, and its shape."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor by its name. Raises CheckpointError where files are missing, damaged or pickles."""
    files = _files(folder)
    found: dict[str, Stored] = {}
    for file in files:
        for name, entry in header(folder / file).items():
            found[name] = Stored(file, name, entry.dtype, tuple(entry.shape))
    return found


def _files(folder: Path) -> list[str]:
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if not (folder / INDEX).exists():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle: save it with safe_serialization=True" if pickled else ""
        raise CheckpointError(f"{folder}: has neither {SINGLE} nor {INDEX}{hint}")
    names = index_files(folder / INDEX)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: is missing, and {INDEX} names it; copy the model again")
    return names


# What files have beside weights: rotary frequencies of older Llamas, the causal mask of GPT-2's.
_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")


def index_files(path: Path) -> list[str]:
    """The files that an index names, in its own folder. Raises CheckpointError."""
    mapping = (read_object(path) or {}).get("weight_map")
    names = sorted(set(map(str, mapping.values()))) if isinstance(mapping, dict) else []
    for name in names:
        is_name = name not in ("", "..") and name.isprintable() and len(name.encode()) <= _LONGEST_NAME
        if not is_name or Path(name).name != name:
            raise CheckpointError(f"{path}: names the file {name[:60]!r}, which is not in the folder")
    if not names:
        raise CheckpointError(f"{path}: names no file")
    return names


def located(folder: Path, model: ModelSpec) -> dict[str, tuple[Source, list[Stored]]]:
    """For each of hpclm's tensors where its parts lie, their shapes compared with the configuration.

    Raises CheckpointError that names the first tensor that is missing or of another shape.
    """
    stored, wanted = stored_tensors(folder), shapes(model)
    rows = model_spec(folder).vocab_size
    made: dict[str, tuple[Source, list[Stored]]] = {}
    for name, source in sources(model).items():
        parts = []
        for one in source.names:
            # GPT-2's own files on the hub have no prefix
            part = stored.get(one) or stored.get(one.removeprefix("transformer.").removeprefix("model."))
            if part is None:
                raise CheckpointError(f"{folder}: contains no tensor {one}, which config.json requires")
            parts.append(part)
        _check_shape(folder, source, parts, wanted[name], model, rows)
        made[name] = source, parts
    used = {part.name for _, parts in made.values() for part in parts}
    others = (name for name in stored if name not in used and not _COMPUTED.search(name))
    other = next((name for name in others if not (model.tie_embeddings and name == "lm_head.weight")), None)
    if other is not None:
        raise CheckpointError(f"{folder}: has a tensor {other}, for which the model of config.json has no place")
    return made


def _check_shape(
    folder: Path, source: Source, parts: list[Stored], wanted: tuple[int, ...], model: ModelSpec, rows: int
) -> None:
    for part, expected in zip(parts, _part_shapes(source, wanted, model), strict=True):
        # a recipe may take fewer rows of the vocabulary than the `rows` of the configuration
        whole = (rows, *expected[1:]) if source.vocabulary and rows > expected[0] else expected
        if part.shape not in (expected, whole):
            raise CheckpointError(
                f"{folder}: {part.name} has shape {list(part.shape)}, and config.json needs {list(expected)}"
            )


def _part_shapes(source: Source, whole: tuple[int, ...], model: ModelSpec) -> list[tuple[int, ...]]:
    """Of transformers' tensors that make one of hpclm's of that shape."""
    if source.rule in ("transposed", "fused_qkv"):
        return [whole[::-1]]
    if source.rule == "joined":
        return [(whole[0] // 2, *whole[1:])] * 2
    if source.rule == "qkv":
        heads = (model.num_attention_heads, model.num_query_groups, model.num_query_groups)
        return [(count * model.kv_channels, *whole[1:]) for count in heads]
    return [whole]
