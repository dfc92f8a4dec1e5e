"""The model of a checkpoint of Megatron-LM, by the arguments that it was trained with.

Source: Megatron-LM core_v0.12.0 to core_v0.19.0, megatron/training/arguments.py and checkpointing.py: `common.pt` holds
the arguments, as argparse gives them, after their checks; so does each rank's file of the older format.
"""

from __future__ import annotations

from typing import Any, Literal

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import Activation, ModelSpec, Normalization
from hpclm.formats.archive import Archive, Member
from hpclm.formats.format_guard import guarded
from hpclm.formats.megatron.inert_pickle import Inert, inert
from hpclm.formats.torch_pickles import read_index

COMMON = "common.pt"

# What models of engine megatron have not.
_REFUSED = (
    *("multi_latent_attention", "mtp_num_layers", "moe_shared_expert_intermediate_size", "is_hybrid_model"),
    *("heterogeneous_layers_config_path", "window_size", "attention_output_gate", "experimental_attention_variant"),
    *("moe_router_enable_expert_bias", "moe_router_topk_scaling_factor", "moe_latent_size", "rotary_interleaved"),
    *("no_rope_freq", "qk_l2_norm", "use_mup", "apply_residual_connection_post_layernorm", "quick_geglu"),
    *("moe_router_num_groups", "moe_router_group_topk", "softmax_scale", "glu_linear_offset", "linear_attention_freq"),
    *("activation_func_clamp_value", "moe_apply_probs_on_input", "heterogeneous_layers_config_encoded_json"),
)
_POSITIONS: dict[str, Literal["learned", "rope"]] = {"learned_absolute": "learned", "rope": "rope"}


def given_arguments(found: Any, where: str) -> dict[str, Any]:
    """The arguments in what a file holds, by name. Raises CheckpointError."""
    arguments = found.get("args") if isinstance(found, dict) else None
    if not isinstance(arguments, Inert) or arguments.origin[1] != "Namespace":
        raise CheckpointError(f"{where}: holds no arguments of Megatron-LM (args); it was written by another program")
    return arguments.state


@guarded("the arguments of a checkpoint of Megatron-LM")
def model_spec(archive: Archive, member: Member, vocab_size: int | None = None) -> ModelSpec:
    """The model by the arguments in a file. Raises CheckpointError for one that engine megatron has not.

    Args:
        vocab_size: the tokenizer's, of which Megatron-LM saves only the padded one.
    """
    where = f"{archive.path}: {member.name}"
    given = given_arguments(read_index(archive, member, inert), where)
    _refuse_unknown(given, where)

    def whole(name: str, otherwise: int | None = None) -> int:
        value = given.get(name) if given.get(name) is not None else otherwise
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{where}: {name} is {value!r}; it must be a number of 1 or more")
        return value

    heads, hidden, experts = whole("num_attention_heads"), whole("hidden_size"), given.get("num_experts")
    ffn = whole("ffn_hidden_size", 4 * hidden)
    padded = whole("padded_vocab_size")
    return ModelSpec(
        num_layers=whole("num_layers"),
        hidden_size=hidden,
        ffn_hidden_size=whole("moe_ffn_hidden_size", ffn) if experts else ffn,
        num_attention_heads=heads,
        num_query_groups=whole("num_query_groups", heads) if given.get("group_query_attention") else heads,
        kv_channels=whole("kv_channels", hidden // heads),
        max_position_embeddings=whole("max_position_embeddings"),
        # Megatron-LM's own is that of its tokenizer without the end token, or none
        vocab_size=min(padded, vocab_size or whole("vocab_size", padded) + 1),
        padded_vocab_size=padded,
        position_embedding=_POSITIONS[_position(given)],
        rotary_base=float(given.get("rotary_base") or 10000),
        normalization=_normalization(given),
        layernorm_epsilon=float(given.get("norm_epsilon") or given.get("layernorm_epsilon") or 1e-5),
        activation=_activation(given),
        add_bias_linear=bool(given.get("add_bias_linear", True)),
        tie_embeddings=not given.get("untie_embeddings_and_output_weights", False),
        init_std=float(given.get("init_method_std") or 0.02),
        rotary_percent=float(given.get("rotary_percent") or 1.0),
        rotary_interpolation=float(given.get("rotary_seq_len_interpolation_factor") or 1.0),
        rotary_scaling_factor=float(given["rope_scaling_factor"]) if given.get("use_rope_scaling") else None,
        add_qkv_bias=bool(given.get("add_qkv_bias")) and not given.get("add_bias_linear", True),
        qk_norm=bool(given.get("qk_layernorm")),
        num_moe_experts=int(experts) if experts else None,
        moe_router_topk=whole("moe_router_topk", 2),
    )


def _refuse_unknown(given: dict[str, Any], where: str) -> None:
    for name in _REFUSED:
        if given.get(name):
            raise CheckpointError(f"{where}: {name} {given[name]!r}: hpclm has no such models")
    if given.get("softmax_type") not in (None, "vanilla"):
        raise CheckpointError(f"{where}: softmax_type {given['softmax_type']!r}: hpclm has no such models")
    position = _position(given)
    if position not in _POSITIONS:
        raise CheckpointError(f"{where}: position_embedding_type {position!r}: hpclm has no such models")
    _refuse_routers(given, where)


def _position(given: dict[str, Any]) -> Any:
    """Before there was a kind of positions, there was a switch."""
    otherwise = "rope" if given.get("use_rotary_position_embeddings") else "learned_absolute"
    return given.get("position_embedding_type", otherwise)


def _refuse_routers(given: dict[str, Any], where: str) -> None:
    if not given.get("num_experts"):
        return
    before = given.get("moe_router_topk", 2) == 1  # the router's softmax, over the experts or over the chosen ones
    if given.get("moe_router_load_balancing_type") == "sinkhorn":  # others only change what is learned
        raise CheckpointError(f"{where}: moe_router_load_balancing_type 'sinkhorn': hpclm has no such models")
    for name, only in (
        ("moe_router_pre_softmax", before),
        ("moe_router_score_function", "softmax"),
        ("moe_layer_freq", 1),
    ):
        value = given.get(name, only)
        if value not in (None, only) and not (name == "moe_layer_freq" and isinstance(value, list) and all(value)):
            raise CheckpointError(f"{where}: {name} {value!r}: models of hpclm have {only!r} here")


def _normalization(given: dict[str, Any]) -> Normalization:
    if given.get("normalization", "LayerNorm") == "RMSNorm":
        return "rmsnorm"
    return "layernorm1p" if given.get("apply_layernorm_1p") else "layernorm"


def _activation(given: dict[str, Any]) -> Activation:
    if given.get("swiglu") or given.get("squared_relu"):
        return "swiglu" if given.get("swiglu") else "squared_relu"
    # the fused kernel is the tanh form, torch's own the error function
    return "gelu" if given.get("bias_gelu_fusion", True) or given.get("openai_gelu") else "gelu_exact"
