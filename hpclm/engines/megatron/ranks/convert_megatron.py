"""Checkpoints of Megatron-LM as hpclm's, and back, tensor by tensor, never as a whole."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.core.vocabulary_size import VOCABULARY_MULTIPLE, padded_vocab_size
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.convert_huggingface import new_folder, write_checkpoint
from hpclm.formats.archive import Archive
from hpclm.formats.megatron import model_weights as megatron
from hpclm.formats.megatron.expected_tensors import VOCABULARY
from hpclm.formats.megatron.stacked_tensors import EXPERTS, LAYERS, layer_tensor
from hpclm.formats.model_card import read_model_card
from hpclm.formats.ranks.archived_weights import whole_tensor
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from hpclm.formats.ranks.distributed_file import DistributedFolder
from hpclm.formats.ranks.tensor_file import Shape
from hpclm.formats.stored_weights import Weight

_EXPERTS = "mlp.experts."


def from_megatron(source: Path, out: Path, tokenizer: Tokenizer | None) -> str:
    """A checkpoint of hpclm's. Raises CheckpointError.

    Args:
        source: an iteration's folder.
        tokenizer: the model's, which is not in it.
    """
    with Archive(source) as archive:
        model = megatron.read_model(archive, tokenizer.vocab_size if tokenizer is not None else None)
        if tokenizer is not None:
            tokenizer.check_fits(model.padded_vocab_size)
        weights = megatron.read_weights(archive, model)
        wanted = {name: _shape(archive, name, weight, model) for name, weight in weights.items()}

        def tensor(name: str) -> torch.Tensor:
            whole = whole_tensor(archive, weights[name])
            return whole[: model.vocab_size] if name in VOCABULARY else whole

        def beside(folder: Path) -> list[str]:
            if tokenizer is None:
                return ["without a tokenizer, which a checkpoint of Megatron-LM does not have: give it by --tokenizer"]
            tokenizer.save(folder)
            return []

        return write_checkpoint(out, model, wanted, tensor, beside)


def _shape(archive: Archive, name: str, weight: Weight, model: ModelSpec) -> Shape:
    """The vocabulary without padding."""
    dtype = getattr(torch, weight.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(f"{archive.path}: {name} is {weight.dtype}; it must be a float")
    rows = (model.vocab_size, *weight.shape[1:])
    return Shape(dtype, rows if name in VOCABULARY else weight.shape)


def to_megatron(source: Path, out: Path) -> str:
    """A folder for Megatron-LM's --load, in its format torch_dist, which any split of its ranks loads.

    Raises CheckpointError for a model that Megatron-LM has not.
    """
    model = read_model_card(source, "give a checkpoint of a whole model")
    model = dataclasses.replace(model, padded_vocab_size=padded_vocab_size(model.vocab_size, 1))
    stored = WholeTensors(source)
    dtype = stored.dtype(VOCABULARY[0])
    given = _arguments(model, dtype)
    with new_folder(out) as folder:
        target = folder / "release"
        target.mkdir()
        with DistributedFolder(target) as written:
            for name in sorted(stored.stored):
                _write(written, model, name, _padded(stored.tensor(name), name, model))
            for name, shape in _states(model):
                written.state(name, shape)
        common = {"args": given, "checkpoint_version": 3.0, "iteration": 0, "num_floating_point_operations_so_far": 0}
        torch.save(common, target / megatron.COMMON)
        kinds = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
        (target / "metadata.json").write_text(json.dumps({**kinds, "common_backend_version": 1}))
        (folder / megatron.LATEST).write_text("release")
    flags = " ".join(["--use-checkpoint-args", "--finetune", *_flags(model)])
    return f"{out}: for Megatron-LM's --load, with {flags}"


def _flags(model: ModelSpec) -> list[str]:
    """What --use-checkpoint-args does not take from the arguments."""
    found = [
        (model.qk_norm, "--qk-layernorm"),
        (model.layernorm_epsilon != 1e-5, f"--norm-epsilon {model.layernorm_epsilon}"),
        (model.activation == "gelu_exact", "--no-bias-gelu-fusion"),
        (bool(model.num_moe_experts and model.moe_aux_loss_coeff), f"--moe-aux-loss-coeff {model.moe_aux_loss_coeff}"),
        (bool(model.num_moe_experts and model.moe_z_loss_coeff), f"--moe-z-loss-coeff {model.moe_z_loss_coeff}"),
        (
            model.rotary_interpolation != 1,
            f"--rotary-seq-len-interpolation-factor {model.rotary_interpolation:g}",
        ),
        (
            model.rotary_scaling_factor is not None,
            f"--use-rope-scaling --rope-scaling-factor {model.rotary_scaling_factor}",
        ),
    ]
    return [flag for needed, flag in found if needed]


def _padded(whole: torch.Tensor, name: str, model: ModelSpec) -> torch.Tensor:
    if name not in VOCABULARY:
        return whole
    rows = whole[: model.vocab_size]
    return torch.cat([rows, rows.new_zeros(model.padded_vocab_size - len(rows), *rows.shape[1:])])


def _write(written: DistributedFolder, model: ModelSpec, name: str, whole: torch.Tensor) -> None:
    """A tensor as its place in the stacked one of all layers and experts."""
    if not name.startswith(LAYERS):
        written.part(name, (), (), whole)
        return
    number, _, part = name.removeprefix(LAYERS).partition(".")
    place: tuple[int, ...] = (int(number),)
    sizes: tuple[int, ...] = (model.num_layers,)
    if part.startswith(_EXPERTS):
        expert, _, inner = part.removeprefix(_EXPERTS).partition(".")
        place, sizes = (*place, int(expert)), (*sizes, model.num_moe_experts or 0)
        part = f"{EXPERTS}{inner}"
    written.part(f"{LAYERS}{part}", place, sizes, whole)
    if part.startswith("pre_mlp_layernorm."):  # as layers without Transformer Engine call it
        alone = layer_tensor(part, experts=False)
        written.part(f"{LAYERS}{alone}", place, sizes, whole)


def _states(model: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Modules that look for a state beside their weights, Transformer Engine's among them, and how often each is there:
    by layer, by layer and expert, or once."""
    layer = ["self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention"]
    if model.qk_norm:
        layer += ["self_attention.q_layernorm", "self_attention.k_layernorm"]
    found: list[tuple[str, tuple[int, ...]]] = [("decoder.final_layernorm", (1,)), ("output_layer", (1,))]
    if model.num_moe_experts is None:
        layer += ["mlp.linear_fc1", "mlp.linear_fc2"]
    else:
        layer += ["pre_mlp_layernorm"]
        stacked = model.num_layers, model.num_moe_experts
        found += [(f"{LAYERS}{EXPERTS}linear_fc{number}", stacked) for number in (1, 2)]
    return found + [(f"{LAYERS}{name}", (model.num_layers,)) for name in layer]


_ACTIVATIONS = ("gelu", "gelu_exact", "swiglu", "squared_relu")


def _arguments(model: ModelSpec, dtype: torch.dtype) -> argparse.Namespace:
    """What Megatron-LM's load_args_from_checkpoint and check_checkpoint_args look for (core_v0.12 to core_v0.19)."""
    if model.activation not in _ACTIVATIONS:
        raise CheckpointError(f"the model's activation is {model.activation}, which Megatron-LM has no flag for")
    if model.position_embedding == "rope" and model.rotary_base % 1:
        raise CheckpointError(f"the model's rotary_base is {model.rotary_base}; Megatron-LM takes whole numbers")
    rope = model.position_embedding == "rope"
    given: dict[str, Any] = {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "seq_length": model.max_position_embeddings,
        "max_position_embeddings": model.max_position_embeddings,
        "num_attention_heads": model.num_attention_heads,
        "group_query_attention": model.num_query_groups != model.num_attention_heads,
        "num_query_groups": model.num_query_groups,
        "kv_channels": model.kv_channels,
        "position_embedding_type": "rope" if rope else "learned_absolute",
        "add_position_embedding": not rope,
        "use_rotary_position_embeddings": rope,
        "rotary_base": int(model.rotary_base),
        "rotary_percent": model.rotary_percent,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": None if model.rotary_interpolation == 1 else model.rotary_interpolation,
        "use_rope_scaling": model.rotary_scaling_factor is not None,
        "rope_scaling_factor": model.rotary_scaling_factor or 8.0,
        "add_bias_linear": model.add_bias_linear,
        "add_qkv_bias": model.add_qkv_bias,
        "qk_layernorm": model.qk_norm,
        "swiglu": model.activation == "swiglu",
        "squared_relu": model.activation == "squared_relu",
        "bias_gelu_fusion": model.activation == "gelu",
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
        "normalization": "RMSNorm" if model.normalization == "rmsnorm" else "LayerNorm",
        "apply_layernorm_1p": model.normalization == "layernorm1p",
        "norm_epsilon": model.layernorm_epsilon,
        "layernorm_epsilon": model.layernorm_epsilon,
        "apply_query_key_layer_scaling": False,
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
        "init_method_std": model.init_std,
        **_experts(model),
        **_training(model, dtype),
    }
    return argparse.Namespace(**given)


def _experts(model: ModelSpec) -> dict[str, Any]:
    experts = model.num_moe_experts is not None
    return {
        "num_experts": model.num_moe_experts,
        "moe_layer_freq": 1,
        "moe_ffn_hidden_size": model.ffn_hidden_size if experts else None,
        "moe_router_topk": model.moe_router_topk,
        "moe_router_pre_softmax": experts and model.moe_router_topk == 1,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "moe_grouped_gemm": False,
    }


def _training(model: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """The vocabulary, and of the training what is compared or read."""
    return {
        "vocab_size": model.vocab_size - 1,  # without the end token
        "padded_vocab_size": model.padded_vocab_size,
        "make_vocab_size_divisible_by": VOCABULARY_MULTIPLE,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "params_dtype": dtype,
        "ckpt_format": "torch_dist",
        "data_parallel_random_init": False,
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
