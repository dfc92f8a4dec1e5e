"""NeMo's model_config.yaml as an architecture. Only for the login node: it needs PyYAML."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import GATED, ModelSpec
from hpclm.formats.archive import Archive
from hpclm.formats.format_guard import damaged, guarded
from hpclm.formats.nemo.archive_tokenizer import vocabulary_size
from hpclm.formats.nemo.gpt_weights import CONFIG, read_weights
from hpclm.formats.stored_weights import Weight


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REFERENCE = re.compile(r"\$\{\.?(?:model\.)?([A-Za-z_]\w*)\}")
_DEPTH = 5
_MAX_CONFIG, _MOST_VALUES = 4 << 20, 1_000_000
_TABLE = "embedding.word_embeddings.weight"
# NeMo's name: hpclm's where the error function is computed, and in the tanh form.
_ACTIVATIONS = {
    "gelu": ("gelu_exact", "gelu"),
    "geglu": ("geglu_exact", "geglu"),
    "swiglu": ("swiglu", "swiglu"),
    "reglu": ("reglu", "reglu"),
    "squared-relu": ("squared_relu", "squared_relu"),
}
_NORMS = {"layernorm": "layernorm", "layernorm1p": "layernorm1p", "rmsnorm": "rmsnorm"}
_POSITIONS = {"learned_absolute": "learned", "rope": "rope"}
# Values that a key may have; others change the model in ways that hpclm does not have.
_REFUSED: dict[str, tuple[object, ...]] = {
    "attention_type": (None, "multihead"),
    "embedding_scale": (None,),
    "ffn_dropout": (None, 0, 0.0),
    "headscale": (None, False),
    "multi_query_attention": (None, False),
    "normalize_attention_scores": (None, True),
    "num_moe_experts": (None, 1),
    "transformer_block_type": (None, "pre_ln"),
    "use_soft_prompts": (None, False),
    "window_size": (None,),
}
_TAKEN = _words(
    """
    activation attention_dropout bias bias_activation_fusion bias_gelu_fusion encoder_seq_length ffn_hidden_size
    hidden_dropout hidden_size init_method_std kv_channels layernorm_epsilon max_position_embeddings mcore_gpt
    megatron_legacy normalization num_attention_heads num_layers num_query_groups openai_gelu
    pipeline_model_parallel_size position_embedding_type rotary_base rotary_percentage
    seq_len_interpolation_factor share_embeddings_and_output_weights tensor_model_parallel_size tokenizer
    transformer_engine
    """
)
# They say how NeMo trained, split, stored or computed the model, not what it is. Sources: NVIDIA/NeMo r1.8 to r1.23,
# megatron_gpt_config.yaml, megatron_gpt_model.py, megatron_base_model.py.
_WITHOUT_EFFECT = _words(
    """
    activations_checkpoint_granularity activations_checkpoint_layers_per_pipeline activations_checkpoint_method
    activations_checkpoint_num_layers answer_only_loss apex_transformer_log_level apply_query_key_layer_scaling
    apply_rope_fusion async_grad_allreduce batch_p2p_comm bias_dropout_add_fusion calc_loss_on_answer_only
    context_parallel_size cpu_offloading cpu_offloading_activations cpu_offloading_num_layers
    cpu_offloading_weights custom data decoder_tokenizer defer_embedding_wgrad_compute deterministic_mode
    dist_ckpt_format dist_ckpt_load_on_device dist_ckpt_parallel_save do_layer_norm_weight_decay drop_last
    enable_megatron_timers encoder_tokenizer end_strings eod_mask_loss existing_prompt_tags existing_tasks
    expert_model_parallel_size fp16_lm_cross_entropy fp32_residual_connection fp8 fp8_amax_compute_algo
    fp8_amax_history_len fp8_e4m3 fp8_hybrid fp8_interval fp8_margin fp8_params fsdp fsdp_grad_reduce_dtype
    fsdp_sharded_checkpoint fsdp_sharding_strategy gc_interval get_attention_mask_from_fusion global_batch_size
    grad_allreduce_chunk_size_mb grad_div_ar_fusion gradient_accumulation_fusion gradient_as_bucket_view
    hysteresis inference language_model make_vocab_size_divisible_by masked_softmax_fusion
    mcore_customization_config megatron_amp_O2 megatron_timer_kwargs micro_batch_size name
    native_amp_growth_interval native_amp_init_scale nccl_communicator_config_path nemo_version nsys_profile
    num_micro_batches_with_partial_activation_checkpoints num_prompt_tokens onnx_safe optim overlap_p2p_comm
    override_vocab_size peft persist_layer_norm pipeline_model_parallel_split_rank post_process pre_process
    precision rampup_batch_size reduce_amax reset_attention_mask reset_position_ids restore_from_path
    resume_from_checkpoint save_nemo_on_validation_end seed sequence_parallel sharp special_tokens
    sync_batch_comm target tp_comm_overlap ub_tp_comm_overlap ub_tp_comm_overlap_cfg use_cpu_initialization
    use_emha use_flash_attention use_loss_mask use_scaled_init_method virtual_pipeline_model_parallel_size
    """
)


@guarded("a NeMo archive")
def read_config(archive: Archive) -> dict[str, Any]:
    """The archive's configuration. Raises CheckpointError."""
    member = archive.find(CONFIG)
    if member is None:
        raise CheckpointError(f"{archive.path}: contains no {CONFIG}; it is not a NeMo archive")
    if member.size > _MAX_CONFIG:
        raise CheckpointError(f"{archive.path}: {CONFIG} has {member.size} bytes, too many for a configuration")
    try:
        text = archive.read(member).decode()
        _refuse_repetition(yaml.compose(text))
        config = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises whatever its constructors do
        raise damaged(f"{archive.path}: {CONFIG}", "YAML", error) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{archive.path}: {CONFIG} is not a mapping")
    return {key: _followed(config, value) for key, value in config.items()}


def _refuse_repetition(root: yaml.Node | None) -> None:
    """Raises ValueError for anchors that stand for more than a million values, written out."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = _MOST_VALUES  # of a node inside itself
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                parts = [one for pair in node.value for one in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    if root is not None and size(root) >= _MOST_VALUES:
        raise ValueError("its anchors stand for more than a million values")


def _followed(config: dict[str, Any], value: Any) -> Any:
    """The value that a reference such as `${.encoder_seq_length}` stands for: NeMo saves them as they were written."""
    for _ in range(_DEPTH):
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None or reference[1] not in config:
            break
        value = config[reference[1]]
    return value


@guarded("a NeMo GPT model")
def model_spec(archive: Archive, vocab_size: int | None = None) -> ModelSpec:
    """The architecture of a GPT archive, padded_vocab_size as stored.

    Args:
        vocab_size: entries of the tokenizer; None takes the archive's own, or every row of the table.

    Raises CheckpointError for what is missing, and for settings that hpclm does not support.
    """
    config = read_config(archive)
    _check_keys(archive, config)
    hidden, heads = _count(archive, config, "hidden_size"), _count(archive, config, "num_attention_heads")
    activation = _activation(archive, config)
    weights = read_weights(archive, heads, gated=activation in GATED)
    if _TABLE not in weights:
        raise CheckpointError(f"{archive.path}: contains no {_TABLE}; it is not a GPT model, or not a whole one")
    rows = weights[_TABLE].shape[0]
    size = vocab_size or vocabulary_size(archive) or rows
    if size > rows:
        raise CheckpointError(
            f"{archive.path}: its table has {rows} rows, the tokenizer {size} entries; give the model's own tokenizer"
        )
    model = ModelSpec(
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
        rotary_base=_number(archive, config, "rotary_base", 10000),
        rotary_percent=_number(archive, config, "rotary_percentage", 1.0),
        rotary_interpolation=_number(archive, config, "seq_len_interpolation_factor", 1.0),
        normalization=_one_of(archive, config, "normalization", "layernorm", _NORMS),  # type: ignore[arg-type]
        layernorm_epsilon=_number(archive, config, "layernorm_epsilon", 1e-5),
        activation=activation,  # type: ignore[arg-type]
        add_bias_linear=config.get("bias") is not False,
        tie_embeddings=config.get("share_embeddings_and_output_weights") is not False,
        hidden_dropout=_number(archive, config, "hidden_dropout", 0.0),
        attention_dropout=_number(archive, config, "attention_dropout", 0.0),
        init_std=_number(archive, config, "init_method_std", 0.02),
    )
    _check_shapes(archive, model, weights)
    return model


def _check_shapes(archive: Archive, model: ModelSpec, weights: Mapping[str, Weight]) -> None:
    """The tensors are those of the configuration. Raises CheckpointError for the first that is not."""
    per_group = model.num_attention_heads // model.num_query_groups + 2
    layer = {
        "self_attention.linear_qkv.weight": (model.num_query_groups * per_group * model.kv_channels, model.hidden_size),
        "self_attention.linear_proj.weight": (model.hidden_size, model.num_attention_heads * model.kv_channels),
        "mlp.linear_fc1.weight": (model.ffn_hidden_size * (2 if model.gated else 1), model.hidden_size),
        "mlp.linear_fc2.weight": (model.hidden_size, model.ffn_hidden_size),
    }
    tables = {_TABLE: (model.padded_vocab_size, model.hidden_size)}
    if model.position_embedding == "learned":
        tables["embedding.position_embeddings.weight"] = (model.max_position_embeddings, model.hidden_size)
    # not as a list: there may be more layers than memory for their names
    layers = ((f"decoder.layers.{n}.{name}", layer[name]) for n in range(model.num_layers) for name in layer)
    for name, shape in itertools.chain(tables.items(), layers):
        found = weights[name].shape if name in weights else None
        if found != shape:
            what = f"has shape {found}" if found else "is missing"
            raise CheckpointError(
                f"{archive.path}: {name} {what}, and by {CONFIG} it has {shape}; the archive contradicts itself"
            )
    beyond = f"decoder.layers.{model.num_layers}."
    if any(name.startswith(beyond) for name in weights):
        raise CheckpointError(f"{archive.path}: has more layers than the {model.num_layers} of {CONFIG}")


def _check_keys(archive: Archive, config: dict[str, Any]) -> None:
    """Each key is taken, refused by name, or known to have no effect. Raises CheckpointError."""
    for key, allowed in _REFUSED.items():
        if not _is_one(config.get(key), allowed):
            raise CheckpointError(f"{archive.path}: {key} is {_shown(config[key])}, which hpclm does not support")
    unknown = sorted(str(key) for key in config if key not in _TAKEN | _WITHOUT_EFFECT | _REFUSED.keys())
    if unknown:
        raise CheckpointError(
            f"{archive.path}: {CONFIG} has {', '.join(unknown[:5])}, which hpclm does not know, so the model could be "
            "read wrongly; unpack the archive, remove what does not change the model, and give the folder"
        )


def _is_one(value: object, allowed: Sequence[object]) -> bool:
    return any(value == one for one in allowed)


def _activation(archive: Archive, config: dict[str, Any]) -> str:
    """NeMo's gelu is the tanh form where it is fused with the bias, where `openai_gelu` asks for it, and in Transformer
    Engine's layers, and else the error function's (nemo/collections/nlp/modules/common/megatron/mlp.py)."""
    written = str(config.get("activation") or "gelu")
    name = written.removeprefix("fast-")
    if name not in _ACTIVATIONS:
        raise CheckpointError(
            f"{archive.path}: activation is {written!r}; hpclm supports {', '.join(_ACTIVATIONS)}, so it cannot be read"
        )
    if config.get("openai_gelu") and name not in ("gelu", "geglu"):
        raise CheckpointError(f"{archive.path}: openai_gelu with activation {written!r} is not supported")
    fused = config.get("bias_activation_fusion", config.get("bias_gelu_fusion")) is not False
    in_layers_of_te = bool(config.get("transformer_engine")) and not config.get("mcore_gpt")
    tanh = (fused and config.get("bias") is not False) or bool(config.get("openai_gelu")) or in_layers_of_te
    return _ACTIVATIONS[name][tanh]


def _number(archive: Archive, config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    if value in (None, False, 0):
        return default
    try:
        found = float(value) if isinstance(value, (int, float, str)) and value is not True else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or found < 0:
        raise CheckpointError(f"{archive.path}: {CONFIG} has no valid number {key} (it has {_shown(value)})")
    return found


def _shown(value: object) -> str:
    """A value in a message; not one of thousands of digits."""
    try:
        return repr(value)[:60]
    except ValueError:
        return "a number of thousands of digits"


def _count(archive: Archive, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{archive.path}: {CONFIG} has no valid integer {key} (it has {_shown(value)})")
    return value


def _one_of(archive: Archive, config: dict[str, Any], key: str, default: str, known: dict[str, str]) -> str:
    value = config.get(key) or default
    if not isinstance(value, str) or value not in known:
        raise CheckpointError(
            f"{archive.path}: {key} is {_shown(value)}; hpclm supports {', '.join(known)}, so it cannot be read"
        )
    return known[value]
