"""NeMo archives as NeMo 1.x writes them: its names, its cuts, its folders; from one of our models."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from hpclm.core.spec import ModelSpec

NAMES = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv": "self_attention.query_key_value",
    "self_attention.linear_proj": "self_attention.dense",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_exact": "gelu",
    "squared_relu": "squared-relu",
    "swiglu": "fast-swiglu",
    "geglu": "fast-geglu",
    "geglu_exact": "fast-geglu",
    "reglu": "fast-reglu",
}
# The same tensors in the layers of Transformer Engine (`transformer_engine`) and of megatron-core (`mcore_gpt`).
TE_NAMES = {
    "input_layernorm.weight": "self_attention.layernorm_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.layernorm_qkv.layer_norm_bias",
    "self_attention.query_key_value": "self_attention.layernorm_qkv",
    "self_attention.dense": "self_attention.proj",
    "post_attention_layernorm.weight": "layernorm_mlp.layer_norm_weight",
    "post_attention_layernorm.bias": "layernorm_mlp.layer_norm_bias",
    "mlp.dense_h_to_4h.": "layernorm_mlp.fc1_",
    "mlp.dense_4h_to_h.": "layernorm_mlp.fc2_",
}
CORE_NAMES = {
    "language_model.encoder.": "decoder.",
    "language_model.": "",
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.linear_qkv.layer_norm_bias",
    "self_attention.query_key_value": "self_attention.linear_qkv",
    "self_attention.dense": "self_attention.linear_proj",
    "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "post_attention_layernorm.bias": "mlp.linear_fc1.layer_norm_bias",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
}
COLUMNS, ROWS = ("linear_qkv", "linear_fc1"), ("linear_proj.weight", "linear_fc2.weight")


def bpe_files() -> dict[str, bytes]:
    """GPT-2's two files, of the 256 bytes and the end token alone, under the names that they have in an archive."""
    entries = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return {"0a_vocab.json": json.dumps(vocabulary).encode(), "0a_merges.txt": b"#version: 0.2\n"}


def config_text(model: ModelSpec, **changes: Any) -> str:
    config = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "max_position_embeddings": model.max_position_embeddings,
        "encoder_seq_length": model.max_position_embeddings,
        "position_embedding_type": "rope" if model.position_embedding == "rope" else "learned_absolute",
        "normalization": model.normalization,
        "activation": ACTIVATIONS[model.activation],
        "bias_activation_fusion": model.activation in ("gelu", "geglu") and model.add_bias_linear,
        "rotary_percentage": model.rotary_percent,
        "rotary_base": model.rotary_base,
        "seq_len_interpolation_factor": None if model.rotary_interpolation == 1.0 else model.rotary_interpolation,
        "bias": model.add_bias_linear,
        "share_embeddings_and_output_weights": model.tie_embeddings,
        "megatron_legacy": False,
        "tokenizer": {"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "nemo:0a1b_vocab.json"},
        **changes,
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())


def shard(
    state: dict[str, Tensor], model: ModelSpec, tensor: int, pipeline: int, rank: tuple[int, int], **options: Any
) -> dict[str, Tensor]:
    """What NeMo's rank (tensor rank, pipeline rank) saves. `state`: the whole model under megatron-core's names."""
    t, p = rank
    layers = model.num_layers // pipeline
    found: dict[str, Tensor] = {}
    if p == 0:
        found["embedding.word_embeddings.weight"] = state["embedding.word_embeddings.weight"].chunk(tensor)[t]
        if model.position_embedding == "learned":
            found["embedding.position_embeddings.weight"] = state["embedding.position_embeddings.weight"]
    for name, value in state.items():
        if not name.startswith("decoder.layers."):
            continue
        _, _, number, part = name.split(".", 3)
        if not p * layers <= int(number) < (p + 1) * layers:
            continue
        module, _, kind = part.rpartition(".")
        found |= {
            f"encoder.layers.{int(number) - p * layers}.{NAMES[module] + suffix}.{kind}": piece
            for suffix, piece in cut(part, value, model, tensor, t, **options).items()
        }
    prefixed = {f"model.language_model.{name}": value for name, value in found.items()}
    if p == pipeline - 1:
        for kind in ("weight", "bias"):
            if f"decoder.final_layernorm.{kind}" in state:
                name = f"model.language_model.encoder.final_layernorm.{kind}"
                prefixed[name] = state[f"decoder.final_layernorm.{kind}"]
        if not model.tie_embeddings:
            prefixed["model.language_model.output_layer.weight"] = state["output_layer.weight"].chunk(tensor)[t]
        elif pipeline > 1:
            prefixed["model.word_embeddings.weight"] = state["embedding.word_embeddings.weight"].chunk(tensor)[t]
    return {name: value.clone() for name, value in prefixed.items()}


def cut(
    part: str, value: Tensor, model: ModelSpec, tensor: int, t: int, *, legacy: bool = False, two: bool = False
) -> dict[str, Tensor]:
    """A tensor rank's part of a layer's tensor, by what is added to its module's name."""
    if "linear_fc1" in part and model.gated:
        gate, other = (half.chunk(tensor)[t] for half in value.chunk(2))
        return {"": gate, "_2": other} if two else {"": torch.cat([gate, other])}
    if any(name in part for name in COLUMNS):
        mine = value.chunk(tensor)[t]
        if legacy and "linear_qkv" in part:
            heads = model.num_attention_heads // tensor
            mine = mine.view(heads, 3, -1, *value.shape[1:]).transpose(0, 1).reshape(mine.shape)
        return {"": mine}
    return {"": value.chunk(tensor, dim=1)[t] if part.endswith(ROWS) else value}


def write_archive(
    path: Path,
    state: dict[str, Tensor],
    model: ModelSpec,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    mode: str = "w",
    files: dict[str, bytes] | None = None,
    config: dict[str, Any] | None = None,
    names: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """A whole .nemo file (mode `w:gz` for a gzipped one), or a folder where `path` has no suffix.

    `names`: those of other layers, for what they replace.
    """
    members = {"model_config.yaml": config_text(model, **(config or {})).encode(), **(files or {})}
    for t in range(tensor):
        for p in range(pipeline):
            folder = f"tp_rank_{t:02d}_pp_rank_{p:03d}/" if pipeline > 1 else f"mp_rank_{t:02d}/" if tensor > 1 else ""
            members[f"{folder}model_weights.ckpt"] = saved(
                renamed(shard(state, model, tensor, pipeline, (t, p), **options), names or {})
            )
    return write_members(path, members, mode)


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Any]:
    """With a state beside the weights, as Transformer Engine's layers have it."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        for theirs, other in names.items():
            name = name.replace(theirs, other)
        found[name] = value
    states = {"linear_fc1": io.BytesIO(), "linear_qkv": io.BytesIO(b"pickled \xff")}
    return found | (
        {f"model.decoder.layers.0.{name}._extra_state": state for name, state in states.items()} if names else {}
    )


def zarr_members(state: dict[str, Tensor], tensor: int) -> dict[str, bytes]:
    """The distributed checkpoint that megatron-core 0.8 writes of a whole model at a tensor parallel split.

    `state`: under megatron-core's names; layers become the first axis of one array.
    """
    arrays: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        layer = re.fullmatch(r"decoder\.layers\.\d+\.(.+)", name)
        arrays.setdefault(f"decoder.layers.{layer[1]}" if layer else name, []).append(value)
    members: dict[str, bytes] = {"model_weights/metadata.json": b'{"sharded_backend": "zarr"}'}
    for name, values in arrays.items():
        whole = torch.stack(values) if ".layers." in name else values[0]
        first = whole.dim() - 1 if name.endswith(ROWS) else 1 if ".layers." in name else 0
        chunks = list(whole.shape)
        if ".layers." in name:
            chunks[0] = 1
        if any(part in name for part in (*COLUMNS, *ROWS, "word_embeddings", "output_layer")) and "norm" not in name:
            chunks[first] //= tensor
        members |= zarr_array(f"model_weights/model.{name}", whole, chunks)
    return members


def zarr_array(folder: str, whole: Tensor, chunks: list[int]) -> dict[str, bytes]:
    """zarr's format 2 as megatron-core writes it; a chunk at the end of an axis is as large as the others."""
    dtype = {torch.bfloat16: "bfloat16", torch.float32: "<f4", torch.float16: "<f2"}[whole.dtype]
    facts = {"chunks": chunks, "compressor": None, "dtype": dtype, "fill_value": None, "filters": None, "order": "C"}
    found = {f"{folder}/.zarray": json.dumps(facts | {"shape": list(whole.shape), "zarr_format": 2}).encode()}
    for place in itertools.product(*(range(-(-size // n)) for size, n in zip(whole.shape, chunks, strict=True))):
        part = whole[tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, chunks, strict=True))]
        full = torch.zeros(chunks, dtype=whole.dtype)
        full[tuple(slice(0, size) for size in part.shape)] = part
        found[f"{folder}/{'.'.join(map(str, place))}"] = bytes(full.flatten().view(torch.uint8).tolist())
    return found


def saved(value: Any) -> bytes:
    """torch.save's bytes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def write_members(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    if not path.suffix:
        for name, content in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
