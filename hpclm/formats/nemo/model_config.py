"""NeMo's model_config.yaml as an architecture. Only for the login node: it needs PyYAML."""

from __future__ import annotations

from typing import Any

import yaml

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.formats.nemo.archive import Archive
from hpclm.formats.nemo.archive_tokenizer import vocabulary_size
from hpclm.formats.nemo.gpt_weights import CONFIG, read_weights

_ACTIVATIONS = {"gelu": "gelu", "swiglu": "swiglu", "fast-swiglu": "swiglu"}
_NORMS = {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}
_POSITIONS = {"learned_absolute": "learned", "rope": "rope"}
# Sizes, and settings that only other kinds of models have.
_REFUSED = {
    "num_moe_experts": (None, 1),
    "rotary_percentage": (None, 1, 1.0),
    "transformer_block_type": (None, "pre_ln"),
    "normalize_attention_scores": (None, True),
    "apply_query_key_layer_scaling": (None, True, False),
    "window_size": (None,),
    "embedding_scale": (None,),
}


def read_config(archive: Archive) -> dict[str, Any]:
    """The archive's configuration. Raises CheckpointError."""
    member = archive.find(CONFIG)
    if member is None:
        raise CheckpointError(f"{archive.path}: contains no {CONFIG}; it is not a NeMo archive")
    try:
        config = yaml.safe_load(archive.read(member).decode())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{archive.path}: {CONFIG} cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{archive.path}: {CONFIG} is not a mapping")
    return config


def model_spec(archive: Archive, vocab_size: int | None = None) -> ModelSpec:
    """The architecture of a GPT archive, padded_vocab_size as stored.

    Args:
        vocab_size: entries of the tokenizer; None takes the archive's own, or every row of the table.

    Raises CheckpointError for what is missing, and for settings that hpclm does not support.
    """
    config = read_config(archive)
    for key, allowed in _REFUSED.items():
        if config.get(key) not in allowed:
            raise CheckpointError(f"{archive.path}: {key} is {config[key]!r}, which hpclm does not support")
    hidden, heads = _count(archive, config, "hidden_size"), _count(archive, config, "num_attention_heads")
    activation = _one_of(archive, config, "activation", "gelu", _ACTIVATIONS)
    rows = read_weights(archive, heads, gated=activation == "swiglu")["embedding.word_embeddings.weight"].shape[0]
    size = vocab_size or vocabulary_size(archive) or rows
    if size > rows:
        raise CheckpointError(
            f"{archive.path}: its table has {rows} rows, the tokenizer {size} entries; give the model's own tokenizer"
        )
    return ModelSpec(
        num_layers=_count(archive, config, "num_layers"),
        hidden_size=hidden,
        ffn_hidden_size=_count(archive, config, "ffn_hidden_size", 4 * hidden),
        num_attention_heads=heads,
        num_query_groups=_count(archive, config, "num_query_groups", heads),
        kv_channels=_count(archive, config, "kv_channels", hidden // heads),
        max_position_embeddings=_count(archive, config, "max_position_embeddings"),
        vocab_size=size,
        padded_vocab_size=rows,
        position_embedding=_one_of(  # type: ignore[arg-type]
            archive, config, "position_embedding_type", "learned_absolute", _POSITIONS
        ),
        normalization=_one_of(archive, config, "normalization", "layernorm", _NORMS),  # type: ignore[arg-type]
        layernorm_epsilon=float(config.get("layernorm_epsilon") or 1e-5),
        activation=activation,  # type: ignore[arg-type]
        add_bias_linear=config.get("bias") is not False,
        tie_embeddings=config.get("share_embeddings_and_output_weights") is not False,
        hidden_dropout=float(config.get("hidden_dropout") or 0.0),
        attention_dropout=float(config.get("attention_dropout") or 0.0),
        init_std=float(config.get("init_method_std") or 0.02),
    )


def _count(archive: Archive, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{archive.path}: {CONFIG} has no valid integer {key} (it has {value!r})")
    return value


def _one_of(archive: Archive, config: dict[str, Any], key: str, default: str, known: dict[str, str]) -> str:
    value = config.get(key) or default
    if value not in known:
        raise CheckpointError(
            f"{archive.path}: {key} is {value!r}; hpclm supports {', '.join(known)}, so it cannot be read"
        )
    return known[value]
