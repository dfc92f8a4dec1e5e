"""`config.json` of transformers' GPT-2, Llama, Mistral, Mixtral, Qwen2 and Qwen3, from and to a `ModelSpec`.

Keys and their defaults are those of transformers 4.53 to 5.24: models/gpt2/configuration_gpt2.py,
models/llama/configuration_llama.py and those of the others; `rope_parameters` is the newer name of `rope_scaling` and
`rope_theta` together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_json
from hpclm.core.spec import ModelSpec
from hpclm.core.vocabulary_size import padded_vocab_size

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
# PEFT's two files
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
_GPT2_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact"}
LLAMA_KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3")
KINDS = ("gpt2", *LLAMA_KINDS)
# What the scaling of Llama 3.1 to 3.3 has beside its factor, and megatron-core's code too
_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def is_huggingface(path: str) -> bool:
    """Whether a folder has transformers' config.json (and is no checkpoint of hpclm's)."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not CheckpointFolder(folder).model.exists()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises CheckpointError."""
    try:
        found = read_json(folder / CONFIG)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / CONFIG}: is missing, or not a JSON object")
    return found


def end_token_id(folder: Path) -> int | None:
    """The (first) end token that a model's configuration names."""
    for name in (GENERATION_CONFIG, CONFIG):
        try:
            found = read_json(folder / name)
        except (OSError, ValueError, RecursionError):
            continue
        value = found.get("eos_token_id") if isinstance(found, dict) else None
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, int) and not isinstance(first, bool) and first >= 0:
            return first
    return None


class _Keys:
    """The keys of a config.json, each with a check of its type. Raises CheckpointError that names the key."""

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path, self.raw = path, raw

    def refuse(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {why}")

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e12:
            raise self.refuse(f"{key} is {value!r}, and must be a number from {least:g}")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default, 1)
        if value != int(value):
            raise self.refuse(f"{key} is {value!r}, and must be a whole number")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(f"{key} is {value!r}, and must be true or false")
        return value

    def only(self, key: str, allowed: Any, why: str) -> None:
        if self.raw.get(key, allowed) != allowed:
            raise self.refuse(f"{key} is {self.raw[key]!r}: {why}")


def model_spec(folder: Path, written_vocab: int | None = None) -> ModelSpec:
    """The architecture. Raises CheckpointError for one that the engine cannot compute, naming the key.

    Args:
        written_vocab: the recipe's vocab_size, instead of the config's.
    """
    keys = _Keys(folder / CONFIG, read_config(folder))
    kind = keys.raw.get("model_type")
    if kind == "gpt2":
        return _gpt2(keys, written_vocab)
    if kind in LLAMA_KINDS:
        return _llama(keys, str(kind), written_vocab)
    raise keys.refuse(f"model_type is {kind!r}; {', '.join(KINDS)} can be read")


def _gpt2(keys: _Keys, written_vocab: int | None) -> ModelSpec:
    keys.only("scale_attn_weights", True, "attention without scaling is not supported")
    keys.only("scale_attn_by_inverse_layer_idx", False, "scaling by the layer is not supported")
    keys.only("add_cross_attention", False, "cross attention is not supported")
    activation = keys.raw.get("activation_function", "gelu_new")
    if activation not in _GPT2_ACTIVATIONS:
        raise keys.refuse(f"activation_function is {activation!r}; {', '.join(_GPT2_ACTIVATIONS)} can be read")
    hidden, heads = keys.whole("n_embd", 768), keys.whole("n_head", 12)
    if hidden % heads:
        raise keys.refuse(f"n_head {heads} does not divide n_embd {hidden}")
    vocabulary = written_vocab or keys.whole("vocab_size", 50257)
    return ModelSpec(
        num_layers=keys.whole("n_layer", 12),
        hidden_size=hidden,
        ffn_hidden_size=keys.whole("n_inner", 4 * hidden),
        num_attention_heads=heads,
        num_query_groups=heads,
        kv_channels=hidden // heads,
        max_position_embeddings=keys.whole("n_positions", 1024),
        vocab_size=vocabulary,
        padded_vocab_size=padded_vocab_size(vocabulary, 1),
        layernorm_epsilon=keys.number("layer_norm_epsilon", 1e-5),
        activation=_GPT2_ACTIVATIONS[activation],  # type: ignore[arg-type] # one of its words
        tie_embeddings=keys.flag("tie_word_embeddings", True),
        init_std=keys.number("initializer_range", 0.02) or 0.02,
    )


def _llama(keys: _Keys, kind: str, written_vocab: int | None) -> ModelSpec:
    keys.only("hidden_act", "silu", "only silu can be read")
    keys.only("mlp_bias", False, "biases in the MLP alone are not supported")
    keys.only("pretraining_tp", 1, "set it to 1")
    attention_bias = keys.flag("attention_bias", kind == "qwen2")
    if attention_bias and kind != "qwen2":
        raise keys.refuse("attention_bias is true: a bias of the attention's output is not supported")
    hidden, heads = keys.whole("hidden_size", 4096), keys.whole("num_attention_heads", 32)
    groups = keys.whole("num_key_value_heads", heads if kind == "llama" else None)
    if heads % groups:
        raise keys.refuse(f"num_key_value_heads {groups} does not divide num_attention_heads {heads}")
    base, interpolation, scaling = _rope(keys)
    vocabulary = written_vocab or keys.whole("vocab_size")
    return ModelSpec(
        num_layers=keys.whole("num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=keys.whole("intermediate_size"),
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=keys.whole("head_dim", hidden // heads),
        max_position_embeddings=_positions(keys),
        vocab_size=vocabulary,
        padded_vocab_size=padded_vocab_size(vocabulary, 1),
        position_embedding="rope",
        rotary_base=base,
        rotary_interpolation=interpolation,
        rotary_scaling_factor=scaling,
        normalization="rmsnorm",
        layernorm_epsilon=keys.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        add_bias_linear=False,
        add_qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tie_embeddings=keys.flag("tie_word_embeddings", False),
        init_std=keys.number("initializer_range", 0.02) or 0.02,
        **(_mixtral(keys) if kind == "mixtral" else {}),
    )


def _mixtral(keys: _Keys) -> dict[str, Any]:
    experts, chosen = keys.whole("num_local_experts", 8), keys.whole("num_experts_per_tok", 2)
    if not 2 <= chosen <= experts:
        raise keys.refuse(f"num_experts_per_tok is {chosen} of {experts} experts; 2 to {experts} can be read")
    coefficient = keys.number("router_aux_loss_coef", 0.001)
    return {"num_moe_experts": experts, "moe_router_topk": chosen, "moe_aux_loss_coeff": coefficient}


def _positions(keys: _Keys) -> int:
    """Up to a sliding window, attention is the same with and without it."""
    positions = keys.whole("max_position_embeddings", 2048)
    window = keys.raw.get("sliding_window")
    if window is None or not keys.raw.get("use_sliding_window", True):
        return positions
    return min(positions, keys.whole("sliding_window"))


def shortened(folder: Path, model: ModelSpec) -> list[str]:
    """What to say of a model whose sequences are shorter than those of its configuration. Raises CheckpointError."""
    positions = read_config(folder).get("max_position_embeddings", model.max_position_embeddings)
    if positions == model.max_position_embeddings:
        return []
    return [
        f"sequences of at most {model.max_position_embeddings} tokens, its sliding window, up to which it makes no "
        f"difference; {CONFIG} says {positions}"
    ]


def _rope(keys: _Keys) -> tuple[float, float, float | None]:
    """Base, interpolation and Llama 3.1's factor."""
    scaling = keys.raw.get("rope_parameters") or keys.raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise keys.refuse(f"rope_scaling is {scaling!r}, and must be an object")
    inner = _Keys(keys.path, scaling)
    base = inner.number("rope_theta") if "rope_theta" in scaling else keys.number("rope_theta", 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return base, 1.0, None
    if kind == "linear":
        return base, inner.number("factor", None, 1), None
    if kind != "llama3":
        raise keys.refuse(f"rope_type is {kind!r}; default, linear and llama3 can be read")
    for key, value in _LLAMA3_SCALING.items():
        if scaling.get(key, value) != value:
            raise keys.refuse(f"{key} of rope is {scaling[key]!r}; only {value:g}, as in Llama 3.1 to 3.3, can be read")
    return base, 1.0, inner.number("factor", None, 1)


def huggingface_config(model: ModelSpec, dtype: str, tokens: Mapping[str, int]) -> dict[str, Any]:
    """The config.json of a model. Raises CheckpointError where no architecture of transformers' is like it.

    Args:
        dtype: of the weights; `tokens`: `eos_token_id`, `bos_token_id`.
    """
    if model.position_embedding == "learned":
        return _gpt2_config(model, dtype, tokens)
    return _llama_config(model, dtype, tokens)


def _refuse(model: ModelSpec, needed: Mapping[str, object], name: str) -> None:
    for key, value in needed.items():
        if getattr(model, key) != value:
            raise CheckpointError(
                f"model.{key} is {getattr(model, key)}, but transformers' {name} has {value}: no architecture there is "
                "like this model"
            )


def _gpt2_config(model: ModelSpec, dtype: str, tokens: Mapping[str, int]) -> dict[str, Any]:
    needed = {
        "normalization": "layernorm",
        "num_query_groups": model.num_attention_heads,
        "add_bias_linear": True,
        "kv_channels": model.hidden_size // model.num_attention_heads,
        "qk_norm": False,
        "num_moe_experts": None,
    }
    _refuse(model, needed, "GPT-2")
    activations = {"gelu": "gelu_new", "gelu_exact": "gelu"}
    if model.activation not in activations:
        raise CheckpointError(f"model.activation is {model.activation}, but transformers' GPT-2 has gelu or gelu_exact")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activations[model.activation],
        "attn_pdrop": model.attention_dropout,
        "embd_pdrop": model.hidden_dropout,
        "resid_pdrop": model.hidden_dropout,
        "initializer_range": model.init_std,
        "layer_norm_epsilon": model.layernorm_epsilon,
        "n_ctx": model.max_position_embeddings,
        "n_embd": model.hidden_size,
        "n_head": model.num_attention_heads,
        "n_inner": model.ffn_hidden_size,
        "n_layer": model.num_layers,
        "n_positions": model.max_position_embeddings,
        "scale_attn_weights": True,
        "tie_word_embeddings": model.tie_embeddings,
        "vocab_size": model.vocab_size,
        "torch_dtype": dtype,
        "use_cache": True,
        **tokens,
    }


def _llama_config(model: ModelSpec, dtype: str, tokens: Mapping[str, int]) -> dict[str, Any]:
    if model.add_qkv_bias and model.qk_norm:
        raise CheckpointError("model.add_qkv_bias and model.qk_norm: no architecture of transformers' has both")
    kind = "qwen2" if model.add_qkv_bias else "qwen3" if model.qk_norm else "llama"
    experts = {}
    if model.num_moe_experts is not None:
        kind, experts = "mixtral", _mixtral_config(model)
    name = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mixtral": "Mixtral"}[kind]
    needed = {"normalization": "rmsnorm", "activation": "swiglu", "add_bias_linear": False, "rotary_percent": 1.0}
    _refuse(model, needed, name)
    if kind == "qwen2":
        _refuse(model, {"kv_channels": model.hidden_size // model.num_attention_heads}, name)
    scaling: dict[str, Any] | None = None
    if model.rotary_scaling_factor is not None:
        scaling = {"rope_type": "llama3", "factor": model.rotary_scaling_factor, **_LLAMA3_SCALING}
        _refuse(model, {"rotary_interpolation": 1.0}, name)
    elif model.rotary_interpolation != 1.0:
        scaling = {"rope_type": "linear", "factor": model.rotary_interpolation}
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        "attention_bias": model.add_qkv_bias,
        "attention_dropout": model.attention_dropout,
        "head_dim": model.kv_channels,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.max_position_embeddings,
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "num_key_value_heads": model.num_query_groups,
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_scaling": scaling,
        "rope_theta": model.rotary_base,
        "tie_word_embeddings": model.tie_embeddings,
        "vocab_size": model.vocab_size,
        "torch_dtype": dtype,
        "use_cache": True,
        **experts,
        **tokens,
    }


def _mixtral_config(model: ModelSpec) -> dict[str, Any]:
    _refuse(model, {"add_qkv_bias": False, "qk_norm": False}, "Mixtral")
    if model.moe_router_topk == 1:
        raise CheckpointError("model.moe_router_topk is 1, but transformers' Mixtral weighs 2 experts or more")
    return {
        "num_local_experts": model.num_moe_experts,
        "num_experts_per_tok": model.moe_router_topk,
        "router_aux_loss_coef": model.moe_aux_loss_coeff,
        "sliding_window": None,
    }
