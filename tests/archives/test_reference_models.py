"""Archives of other architectures give the logits of an independent implementation: transformers' Llama and Nemotron.

Keys and tensor names are those of NeMo r1.22: scripts/nlp_language_modeling/convert_hf_llama_to_nemo.py (mcore and
Transformer Engine, its default, and NeMo's own layers) with conf/megatron_llama_config.yaml, and the configuration of
Nemotron-3-8B and GPT-2B-001 (layernorm1p, half of each head rotated, squared ReLU or SwiGLU).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, NemotronConfig, NemotronForCausalLM

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.formats.archive import Archive
from hpclm.formats.nemo.gpt_weights import read_weights
from hpclm.formats.nemo.model_config import model_spec, read_config
from hpclm.formats.ranks.archived_weights import load_gpt, tensor_of
from hpclm.formats.ranks.shards import sharded_tensors
from tests.support.gpt_models import gpt_of, logits
from tests.support.nemo_files import (
    CORE_NAMES,
    config_text,
    write_archive,
    write_members,
    zarr_array,
    zarr_members,
)

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
# what megatron_llama_config.yaml has beside the sizes
LLAMA_KEYS = {
    "mcore_gpt": True,
    "transformer_engine": True,
    "use_scaled_init_method": True,
    "apply_query_key_layer_scaling": True,
    "headscale": False,
    "openai_gelu": False,
    "normalize_attention_scores": True,
    "attention_type": "multihead",
    "bias_activation_fusion": False,
    "bias_dropout_add_fusion": False,
    "max_position_embeddings": "${.encoder_seq_length}",
    "kv_channels": None,
    "transformer_block_type": "pre_ln",
    "nsys_profile": {"enabled": False},
    "optim": {"name": "fused_adam"},
}


def drawn(model: Any) -> Any:
    """With every weight drawn, norms and biases too."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model.eval()


def in_core_names(model: Any, heads: int, groups: int) -> dict[str, Tensor]:
    """A model of transformers under megatron-core's names, query, key and value of a group one after the other."""
    state = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    found = {
        "embedding.word_embeddings.weight": state["embed_tokens.weight"],
        "output_layer.weight": state["lm_head.weight"],
    }
    norms = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
    for name, value in state.items():
        if name.startswith("norm."):
            found[f"decoder.final_layernorm.{name.removeprefix('norm.')}"] = value
        if not name.startswith("layers."):
            continue
        (_, layer, module), kind = name.split(".", 2), name.rpartition(".")[2]
        here = f"decoder.layers.{layer}."
        base = module.partition(".")[0]
        if base in norms:
            found[f"{here}{norms[base]}.{kind}"] = value
        elif "o_proj" in module:
            found[f"{here}self_attention.linear_proj.weight"] = value
        elif "down_proj" in module:
            found[f"{here}mlp.linear_fc2.weight"] = value
    for layer in range(model.config.num_hidden_layers):
        q, k, v = (state[f"layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
        width = q.shape[0] // heads
        parts = (part.view(groups, -1, width, q.shape[1]) for part in (q, k, v))
        found[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"] = torch.cat(list(parts), dim=1).flatten(0, 2)
        gate, up = state.get(f"layers.{layer}.mlp.gate_proj.weight"), state[f"layers.{layer}.mlp.up_proj.weight"]
        found[f"decoder.layers.{layer}.mlp.linear_fc1.weight"] = up if gate is None else torch.cat([gate, up])
    return found


def same_logits(path: Path, reference: Any, alone: Groups) -> ModelSpec:
    with Archive(path) as archive:
        model = model_spec(archive)
    gpt = gpt_of(model, alone, seed=None)
    load_gpt(path, sharded_tensors(gpt), model)
    tokens = torch.arange(12).view(2, 6) + 5
    with torch.no_grad():
        expected = reference(tokens).logits
    torch.testing.assert_close(logits(gpt)[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)
    return model


LLAMA = ModelSpec(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=4,
    num_query_groups=4,
    kv_channels=16,
    max_position_embeddings=32,
    vocab_size=256,
    padded_vocab_size=256,
    position_embedding="rope",
    normalization="rmsnorm",
    activation="swiglu",
    add_bias_linear=False,
    tie_embeddings=False,
)


@pytest.mark.parametrize("core", [True, False], ids=["mcore", "nemo"])
@pytest.mark.parametrize("change", [{}, {"groups": 2}, {"theta": 5e5}, {"factor": 4.0}], ids=str)
@pytest.mark.parametrize("tensor", [1, 2])
def test_llama_as_nemos_converter_writes_it(
    tmp_path: Path, alone: Groups, core: bool, change: dict[str, Any], tensor: int
) -> None:
    groups, theta, factor = change.get("groups", 4), change.get("theta", 10000.0), change.get("factor")
    rope: dict[str, Any] = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
    rope["rope_theta"] = theta
    config = LlamaConfig(**SIZES, num_key_value_heads=groups, rms_norm_eps=1e-5, rope_parameters=rope)
    reference = drawn(LlamaForCausalLM(config))
    model = replace(LLAMA, num_query_groups=groups, rotary_base=theta, rotary_interpolation=factor or 1.0)
    keys = {**LLAMA_KEYS, **({} if core else {"mcore_gpt": False, "transformer_engine": False})}
    state = in_core_names(reference, 4, groups)
    names = CORE_NAMES if core else None
    path = write_archive(tmp_path / "llama.nemo", state, model, tensor=tensor, names=names, config=keys)
    assert same_logits(path, reference, alone) == model


@pytest.mark.parametrize("tensor", [1, 2])
def test_nemotron_with_squared_relu_layernorm1p_and_half_a_rotation(tmp_path: Path, alone: Groups, tensor: int) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    # the rotated share is an argument for transformers before 5, and in rope_parameters for later ones
    sizes = {**SIZES, "partial_rotary_factor": 0.5}
    config = NemotronConfig(
        **sizes,
        num_key_value_heads=4,
        hidden_act="relu2",
        rope_parameters=rope,
        norm_eps=1e-5,
    )
    reference = drawn(NemotronForCausalLM(config))
    model = replace(LLAMA, activation="squared_relu", normalization="layernorm1p", rotary_percent=0.5)
    keys = {**LLAMA_KEYS, "transformer_engine": True}
    state = in_core_names(reference, 4, 4)
    path = write_archive(tmp_path / "nemotron", state, model, tensor=tensor, names=CORE_NAMES, config=keys)
    assert same_logits(path, reference, alone) == model


@pytest.mark.parametrize(("tensor", "name"), [(1, "unpacked"), (4, "packed.nemo")])
def test_nemotron_as_a_distributed_checkpoint_of_zarr_arrays(
    tmp_path: Path, alone: Groups, tensor: int, name: str
) -> None:
    """As Nemotron-4-340B: grouped queries, squared ReLU, the layers of each tensor in one array."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    sizes = {**SIZES, "partial_rotary_factor": 0.5, "hidden_act": "relu2", "norm_eps": 1e-5}
    reference = drawn(NemotronForCausalLM(NemotronConfig(**sizes, num_key_value_heads=2, rope_parameters=rope)))
    changes: dict[str, Any] = {"normalization": "layernorm1p", "rotary_percent": 0.5, "num_query_groups": 2}
    model = replace(LLAMA, activation="squared_relu", **changes)
    keys = {**LLAMA_KEYS, "transformer_engine": True, "dist_ckpt_format": "zarr"}
    state = in_core_names(reference, 4, 2)
    norms = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    for old, new in norms.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    members = {"model_config.yaml": config_text(model, **keys).encode(), **zarr_members(state, tensor)}
    assert same_logits(write_members(tmp_path / name, members), reference, alone) == model


def test_chunks_of_zarr_arrays_need_not_fit(tmp_path: Path) -> None:
    whole = torch.randn(5, 7, 6).bfloat16()
    folder = write_members(tmp_path / "a", zarr_array("w/model.decoder.layers.mlp.linear_fc2.weight", whole, [2, 3, 4]))
    with Archive(folder) as archive:
        weights = read_weights(archive, 4, gated=False)
        assert len(weights) == 5
        for layer in range(5):
            weight = weights[f"decoder.layers.{layer}.mlp.linear_fc2.weight"]
            found = torch.zeros(weight.shape, dtype=torch.bfloat16)
            for piece in weight.pieces:
                places = zip(piece.offset, piece.shape, strict=True)
                found[tuple(slice(start, start + size) for start, size in places)] = tensor_of(archive, piece.facts())
            assert torch.equal(found, whole[layer])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compressor": {"id": "zlib"}}, "compressed"),
        ({"order": "F"}, "C order"),
        ({"shape": [0]}, "damaged"),
        ({"shape": [10**12, 10**12], "chunks": [1, 1]}, "chunks"),
        ({"dtype": "|O"}, "damaged"),
        ({"chunks": [4]}, "axes"),
        ({"chunks": [5, 3]}, "0.0 has 48 bytes instead of 60"),
    ],
    ids=str,
)
def test_a_damaged_zarr_array_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    members = zarr_array("w/model.output_layer.weight", torch.randn(4, 3), [4, 3])
    facts = json.loads(members["w/model.output_layer.weight/.zarray"])
    members["w/model.output_layer.weight/.zarray"] = json.dumps(facts | change).encode()
    with Archive(write_members(tmp_path / "a", members)) as archive, pytest.raises(CheckpointError, match=said):
        read_weights(archive, 4, gated=False)


def test_references_in_an_archives_configuration_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "unpacked"
    path.mkdir()
    (path / "model_config.yaml").write_text(config_text(LLAMA, max_position_embeddings="${.encoder_seq_length}"))
    with Archive(path) as archive:
        assert read_config(archive)["max_position_embeddings"] == 32
