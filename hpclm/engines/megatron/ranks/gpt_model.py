"""GPT on megatron-core, built from a `ModelSpec` and initialised the same way for every split."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from hpclm.core.parallel_spec import ParallelSpec, RecomputeSpec
from hpclm.core.ranks.seeds import normal_part
from hpclm.core.spec import Backends, ModelSpec
from hpclm.engines.megatron.ranks import experts, recomputation, rotary
from hpclm.engines.megatron.ranks.backend_modules import ATTENTIONS, NORMS
from hpclm.engines.megatron.ranks.gated import Gate
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.key_value_cache import CachedAttention
from hpclm.engines.megatron.ranks.plain_linear import make_plain
from hpclm.formats.ranks.parameters import mark_tensor_parallel
from hpclm.formats.ranks.shards import sharded_tensors
from hpclm.formats.ranks.tensor_shard import Shard
from hpclm.worker.gpu_environment import can_compile

DEFAULT_BACKENDS = Backends()
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# GPT-2 and Megatron's fused kernel use the tanh form; torch's default is the error function.
gelu = functools.partial(functional.gelu, approximate="tanh")


def squared_relu(states: torch.Tensor) -> torch.Tensor:
    """relu(x)² (So et al. 2021, arXiv:2109.08668). megatron-core compiles its own, which needs a C compiler."""
    return functional.relu(states).square()


_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_exact": functional.gelu,
    "squared_relu": squared_relu,
    "swiglu": functional.silu,
    "geglu": gelu,
    "geglu_exact": functional.gelu,
    "reglu": functional.relu,
}
_NORMALIZATIONS = {"layernorm": "LayerNorm", "layernorm1p": "LayerNorm", "rmsnorm": "RMSNorm"}


def transformer_config(
    model: ModelSpec,
    parallel: ParallelSpec,
    precision: str,
    device: torch.device,
    *,
    variable_lengths: bool,
    recompute: RecomputeSpec | None = None,
    deterministic: bool = False,
) -> TransformerConfig:
    """megatron-core's configuration of `model` at a split.

    Args:
        variable_lengths: let pipeline stages send each other a micro-batch's shape (prompt learning pads each
            micro-batch to its own longest example).
        recompute: activation checkpointing while training.
        deterministic: on a GPU, gradients of the embedding too are summed in one order.
    """
    return TransformerConfig(
        **_numerics(precision, device, model.hidden_dropout),
        **recomputation.settings(recompute),
        deterministic_mode=deterministic and device.type == "cuda",
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        normalization=_NORMALIZATIONS[model.normalization],
        layernorm_zero_centered_gamma=model.normalization == "layernorm1p",
        layernorm_epsilon=model.layernorm_epsilon,
        activation_func=_ACTIVATIONS[model.activation],
        gated_linear_unit=model.gated,
        add_bias_linear=model.add_bias_linear,
        add_qkv_bias=model.add_qkv_bias,
        qk_layernorm=model.qk_norm,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method_std=model.init_std,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        sequence_parallel=parallel.sequence_parallel,
        **_stages(parallel),
        **_experts(model, parallel),
        variable_seq_lengths=variable_lengths,
    )


def _numerics(precision: str, device: torch.device, hidden_dropout: float) -> dict[str, Any]:
    """Types of weights and arithmetic, and which of megatron-core's fused kernels are used: only what pays and works
    without a C compiler on the node where it has none."""
    dtype = DTYPES[precision]
    return {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        # weights are set by `initialize_weights`, which does not depend on the split
        "perform_initialization": False,
        "use_cpu_initialization": device.type == "cpu",
        "bias_activation_fusion": False,
        "bias_dropout_fusion": device.type == "cuda" and hidden_dropout > 0.0 and can_compile(),
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        # NCCL orders transfers by the stream; megatron-core would wait for the whole device at each
        "batch_p2p_sync": False,
    }


def _stages(parallel: ParallelSpec) -> dict[str, Any]:
    """How sequences and layers are divided."""
    interleaved = parallel.virtual_pipeline > 1
    return {
        "context_parallel_size": parallel.context,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline if interleaved else None,
        "num_layers_in_first_pipeline_stage": parallel.first_stage_layers,
        "num_layers_in_last_pipeline_stage": parallel.last_stage_layers,
        "account_for_embedding_in_pipeline_split": parallel.account_for_embedding,
        "account_for_loss_in_pipeline_split": parallel.account_for_loss,
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
    }


def _experts(model: ModelSpec, parallel: ParallelSpec) -> dict[str, Any]:
    """Mixture of experts. The weights of the chosen experts sum to 1, as in Mixtral (Jiang et al. 2024,
    arXiv:2401.04088, section 2.1); where a token has one, it is the router's share, which would be 1 otherwise."""
    # without experts it is unused, but the default forbids variable lengths
    dispatcher = {"moe_token_dispatcher_type": "alltoall"}
    if model.num_moe_experts is None:
        return dispatcher
    return {
        **dispatcher,
        "num_moe_experts": model.num_moe_experts,
        "moe_router_topk": model.moe_router_topk,
        "moe_router_pre_softmax": model.moe_router_topk == 1,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff,
        "moe_z_loss_coeff": model.moe_z_loss_coeff or None,
        "moe_router_dtype": "fp32",
        "expert_model_parallel_size": parallel.expert,
        "expert_tensor_parallel_size": parallel.expert_tensor_size,
    }


def build_gpt(
    model: ModelSpec,
    config: TransformerConfig,
    groups: Groups,
    backends: Backends = DEFAULT_BACKENDS,
    chunk: int | None = None,
) -> GPTModel:
    """This rank's shard of the model, weights not yet set.

    Args:
        chunk: which of the rank's chunks of layers, under the interleaved schedule.
    """
    rotary.install()
    experts.install()
    recomputation.install()
    embeds = groups.is_first_stage and not chunk
    with groups.device:
        gpt = GPTModel(
            config=config,
            transformer_layer_spec=_layers(model, config, backends, get_num_layers_to_build(config, chunk)),
            vocab_size=model.padded_vocab_size,
            max_sequence_length=model.max_position_embeddings,
            pre_process=embeds,
            post_process=groups.is_last_stage and chunk in (None, groups.virtual_size - 1),
            share_embeddings_and_output_weights=model.tie_embeddings,
            position_embedding_type="learned_absolute" if model.position_embedding == "learned" else "rope",
            rotary_base=int(model.rotary_base),
            rotary_percent=model.rotary_percent,
            seq_len_interpolation_factor=None if model.rotary_interpolation == 1.0 else model.rotary_interpolation,
            rope_scaling=model.rotary_scaling_factor is not None,
            rope_scaling_factor=model.rotary_scaling_factor or 1.0,
            vp_stage=chunk,
        )
    # Soft prompts are inserted between the embedding lookup and the scatter over the sequence, so the lookup must give
    # the whole sequence (with learned positions it always does).
    if embeds:
        gpt.embedding.reduce_scatter_embeddings = False
        gpt.embedding.word_embeddings.reduce_scatter_embeddings = False
    for parameter in gpt.parameters():
        # the position table does not follow params_dtype
        parameter.data = parameter.data.to(config.params_dtype)
    mark_tensor_parallel(gpt)
    experts.keep_apart(gpt)
    if groups.tensor_size == 1:
        make_plain(gpt)
    recomputation.copy_biases(gpt)
    return gpt


def _layers(model: ModelSpec, config: TransformerConfig, backends: Backends, count: int) -> TransformerBlockSubmodules:
    norm = NORMS[backends.norm]
    layer = get_gpt_layer_local_spec(
        num_experts=model.num_moe_experts,
        moe_grouped_gemm=False,
        normalization=config.normalization,
        qk_layernorm=model.qk_norm,
    )
    if model.num_moe_experts is not None:
        # the norm before experts is no part of a linear layer
        del layer.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    if model.qk_norm:
        attention = layer.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = norm
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
    layer.submodules.self_attention.module = CachedAttention
    layer.submodules.self_attention.submodules.core_attention = ATTENTIONS[backends.attention]
    if config.gated_linear_unit:
        # the name is of where it came from: the MLP then takes its activation from the layer's parts
        config.use_te_activation_func = True
        parts = layer.submodules.mlp.submodules
        (parts if model.num_moe_experts is None else parts.experts.submodules).activation_func = Gate
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=norm)


@torch.no_grad()
def initialize_weights(gpt: GPTModel, model: ModelSpec, seed: int) -> None:
    """GPT-2's initialisation: N(0, init_std), the projections into the residual stream divided by √(2L).

    A weight's numbers depend on the seed, its global name and their places in the whole tensor, so that each split of
    the model starts from the same weights; a rank draws its own part alone.
    """
    residual_std = model.init_std / math.sqrt(2 * model.num_layers)
    for shard in sharded_tensors(gpt):
        name = shard.key.rpartition(".")[2]
        if name in ("bias", "layer_norm_bias"):
            shard.data.zero_()
        elif name == "layer_norm_weight" or shard.key.endswith("layernorm.weight"):
            shard.data.fill_(0.0 if model.normalization == "layernorm1p" else 1.0)
        else:
            is_residual = shard.key.endswith(("linear_proj.weight", "linear_fc2.weight"))
            shard.data.copy_(_drawn(shard, seed, residual_std if is_residual else model.init_std))


def _drawn(shard: Shard, seed: int, std: float) -> torch.Tensor:
    return normal_part(seed, shard.key, shard.global_offset, shard.local_shape).mul_(std)
