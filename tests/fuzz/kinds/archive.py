"""NeMo archives, PEFT's adapters and hpclm's checkpoints: `model inspect PATH`."""

from __future__ import annotations

import functools
import json
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz import odd_values, raw_bytes, tar_file, torch_file, trees
from tests.fuzz.kinds import checkpoints
from tests.support import samples

_LAYER = "model.language_model.encoder.layers.0."
SHAPES: dict[str, tuple[int, ...]] = {
    "model.language_model.embedding.word_embeddings.weight": (64, 16),
    "model.language_model.embedding.position_embeddings.weight": (32, 16),
    f"{_LAYER}input_layernorm.weight": (16,),
    f"{_LAYER}input_layernorm.bias": (16,),
    f"{_LAYER}self_attention.query_key_value.weight": (48, 16),
    f"{_LAYER}self_attention.query_key_value.bias": (48,),
    f"{_LAYER}self_attention.dense.weight": (16, 16),
    f"{_LAYER}self_attention.dense.bias": (16,),
    f"{_LAYER}post_attention_layernorm.weight": (16,),
    f"{_LAYER}post_attention_layernorm.bias": (16,),
    f"{_LAYER}mlp.dense_h_to_4h.weight": (64, 16),
    f"{_LAYER}mlp.dense_h_to_4h.bias": (64,),
    f"{_LAYER}mlp.dense_4h_to_h.weight": (16, 64),
    f"{_LAYER}mlp.dense_4h_to_h.bias": (16,),
    "model.language_model.encoder.final_layernorm.weight": (16,),
    "model.language_model.encoder.final_layernorm.bias": (16,),
}
CONFIG: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 16,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "encoder_seq_length": "${.max_position_embeddings}",
    "position_embedding_type": "learned_absolute",
    "normalization": "layernorm",
    "layernorm_epsilon": 1e-5,
    "activation": "gelu",
    "bias": True,
    "rotary_percentage": 1.0,
    "rotary_base": 10000,
    "init_method_std": 0.02,
    "hidden_dropout": 0.1,
    "megatron_legacy": False,
    "nemo_version": "1.20.0",
    "tokenizer": {"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "nemo:0a_vocab.json"},
}
VOCABULARY = {chr(97 + number % 26) * (1 + number // 26): number for number in range(60)}
PROMPTS = {"prompt_table": {"prompt_table.first": (10, 16), "prompt_table.second": (10, 16)}}
Members = dict[str, bytes]


@functools.cache
def _weights() -> tuple[bytes, dict[str, int]]:
    return torch_file.weights(SHAPES)


def model_members() -> Members:
    pickle, storages = _weights()
    return {
        "model_config.yaml": yaml.safe_dump(CONFIG, sort_keys=False).encode(),
        "0a_vocab.json": json.dumps(VOCABULARY).encode(),
        "0a_merges.txt": b"#version: 0.2\n",
        "model_weights.ckpt": torch_file.zipped(pickle, storages),
    }


def prompt_members() -> Members:
    config = {
        "virtual_prompt_style": "p-tuning",
        "language_model_path": "/gpt.nemo",
        "task_templates": [{"taskname": "first"}],
    }
    tables = torch_file.dictionary(
        {
            "prompt_table.first": torch_file.tensor("0", (10, 16)),
            "prompt_table.second": torch_file.tensor("1", (10, 16)),
        }
    )
    pickle = torch_file.pickled(torch_file.dictionary({"prompt_table": tables}))
    return {
        "model_config.yaml": yaml.safe_dump(config).encode(),
        "model_weights.ckpt": torch_file.zipped(pickle, {"0": 640, "1": 640}),
    }


def array_members() -> Members:
    """Weights as megatron-core's zarr arrays; layers are the first axis of one array."""
    members = {key: value for key, value in model_members().items() if key != "model_weights.ckpt"}
    members["model_config.yaml"] += b"mcore_gpt: true\n"
    members["model_weights/metadata.json"] = b'{"sharded_backend": "zarr"}'
    for name, shape in {
        "embedding.word_embeddings.weight": (64, 16),
        "embedding.position_embeddings.weight": (32, 16),
        "decoder.layers.self_attention.linear_qkv.weight": (1, 48, 16),
        "decoder.final_layernorm.weight": (16,),
    }.items():
        facts = {
            "chunks": list(shape),
            "compressor": None,
            "dtype": "<f4",
            "fill_value": None,
            "filters": None,
            "order": "C",
        }
        members[f"model_weights/model.{name}/.zarray"] = json.dumps(
            {**facts, "shape": list(shape), "zarr_format": 2}
        ).encode()
        members[f"model_weights/model.{name}/{'.'.join('0' * len(shape))}"] = bytes(4 * torch_file.count(shape))
    return members


def make(rng: Random, folder: Path) -> list[str]:
    way = rng.random()
    made = checkpoints.adapter if way < 0.12 else checkpoints.checkpoint if way < 0.27 else _nemo
    name = made(rng, folder)
    if rng.random() < 0.15:
        # as the model of a recipe
        recipe = {**samples.single(), "model": {"checkpoint": name}}
        samples.write(folder, trees.yaml_text(recipe).encode("utf-8", "surrogatepass"))
        return ["plan", "recipe.yaml"]
    return ["model", "inspect", name, *(["--json"] if rng.random() < 0.4 else [])]


def _nemo(rng: Random, folder: Path) -> str:
    members = rng.choice((model_members, model_members, prompt_members, array_members))()
    way = rng.random()
    if way < 0.65:
        rng.choice((_config, _config, _pickle, _pickle, _zip, _arrays, _vocabulary, _moved))(rng, members)
    if way < 0.65 and rng.random() < 0.35:
        _unpacked(members, folder / "unpacked", rng)
        return "unpacked"
    data = tar_file.tarred(members)
    if 0.65 <= way < 0.75:
        data = tar_file.tarred(members, tar_file.odd_members(rng), front=rng.random() < 0.5)
    elif way < 0.85 and way >= 0.75:
        data = tar_file.odd_header(data, rng)
    elif way >= 0.85 and way < 0.92:
        data = raw_bytes.damaged(data, rng, 3)
    elif way >= 0.92:
        data = tar_file.zipped(data, rng)
    name = rng.choice((*["model.nemo"] * 8, *["model"] * 3, "m\x1b.nemo", "\udcff.nemo"))
    (folder / name).write_bytes(data)
    return name


def _unpacked(members: Members, folder: Path, rng: Random) -> None:
    for name, content in members.items():
        path = folder / name.lstrip("/").replace("..", "__").replace("\0", "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if rng.random() < 0.4:
        raw_bytes.replace_special(
            folder / rng.choice(("model_config.yaml", "model_weights.ckpt", "0a_vocab.json", "extra")), rng
        )


def _config(rng: Random, members: Members) -> None:
    text = members["model_config.yaml"].decode()
    if rng.random() < 0.7:
        changed = trees.mutated(yaml.safe_load(text), rng, odd_values.yaml_value)
        members["model_config.yaml"] = raw_bytes.encoded(trees.yaml_text(changed))
    else:
        members["model_config.yaml"] = raw_bytes.damaged_text(text, rng)


def _vocabulary(rng: Random, members: Members) -> None:
    if "0a_vocab.json" not in members:
        return _config(rng, members)
    changed = trees.mutated(VOCABULARY, rng, odd_values.json_value)
    members["0a_vocab.json"] = raw_bytes.encoded(trees.json_text(changed))
    if rng.random() < 0.2:
        members["0a_vocab.json"] = raw_bytes.damaged(members["0a_vocab.json"], rng, 3)
    return None


def _pickle(rng: Random, members: Members) -> None:
    pickle, storages = _weights()
    if rng.random() < 0.25:
        pickle = raw_bytes.damaged(pickle, rng, 3)
    else:
        name = "prompt_table.first" if rng.random() < 0.3 else next(iter(SHAPES))
        pickle = torch_file.odd_pickle(rng, name, (64, 16))
    members["model_weights.ckpt"] = torch_file.zipped(pickle, storages)


def _zip(rng: Random, members: Members) -> None:
    """Damage of the zip file: its headers' fields, compression, its directory."""
    pickle, storages = _weights()
    way = rng.randrange(7)
    if way == 0:
        bomb = pickle + bytes(rng.choice((10**6, 10**8)))
        data = torch_file.zipped(bomb, {}, zipfile.ZIP_DEFLATED)
    elif way == 1:
        data = torch_file.zipped(
            pickle, storages, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        )
        data = raw_bytes.damaged(data[: len(data) // 2], rng) + data[len(data) // 2 :]
    elif way in (2, 3, 4):
        data = _odd_field(
            torch_file.zipped(pickle, storages, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))), rng
        )
    elif way == 5:
        data = raw_bytes.damaged(members.get("model_weights.ckpt", b""), rng, 3)
    else:
        data = rng.choice((b"", b"PK\x05\x06" + bytes(18), b"PK", pickle, b"PK\x03\x04" * 100))
    members["model_weights.ckpt"] = data


def _odd_field(data: bytes, rng: Random) -> bytes:
    """With one field of a local header, of a directory entry or of the directory's end changed."""
    signature, fields = rng.choice(
        (
            (b"PK\x03\x04", ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
            (b"PK\x01\x02", ((6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4))),
            (b"PK\x05\x06", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
        )
    )
    found = [at for at in range(len(data)) if data.startswith(signature, at)]
    if not found:
        return data
    at = found[0] if rng.random() < 0.5 else rng.choice(found)
    first, length = rng.choice(fields)
    value = rng.choice(
        (b"\xff" * 4, b"\x00" * 4, b"\x01\x00\x00\x00", b"\x0e\x00\x00\x00", b"\x63\x00\x00\x00", rng.randbytes(4))
    )
    return data[: at + first] + value[:length] + data[at + first + length :]


def _arrays(rng: Random, members: Members) -> None:
    names = [name for name in members if name.startswith("model_weights/")]
    if not names:
        members.update({name: value for name, value in array_members().items() if name.startswith("model_weights/")})
        names = [name for name in members if name.startswith("model_weights/")]
    name = rng.choice(names)
    if name.endswith(".zarray"):
        members[name] = raw_bytes.encoded(
            trees.json_text(trees.mutated(json.loads(members[name]), rng, odd_values.json_value))
        )
    else:
        members[name] = raw_bytes.damaged(members[name], rng)


def _moved(rng: Random, members: Members) -> None:
    """Members in other folders, missing or there twice."""
    name = rng.choice(list(members))
    content = members.pop(name)
    folders = (
        "mp_rank_00/",
        "mp_rank_01/",
        "mp_rank_9999/",
        "tp_rank_00_pp_rank_000/",
        "tp_rank_9999_pp_rank_9999/",
        "a/b/",
        "mp_rank_²/",
    )
    for _ in range(rng.randrange(3)):
        members[rng.choice(folders) + name] = content
