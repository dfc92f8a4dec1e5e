"""Names of a GPT model's tensors in NeMo 1.x, which are also Megatron-LM's of before megatron-core."""

from __future__ import annotations

import re

from hpclm.formats.rank_parts import COLUMN, ROW, WHOLE

# NeMo's name within a layer: megatron-core's in a checkpoint (a norm under the layer it goes into), and the axis that
# tensor ranks share.
_LAYER_NAMES = {
    "input_layernorm.weight": ("self_attention.linear_qkv.layer_norm_weight", WHOLE),
    "input_layernorm.bias": ("self_attention.linear_qkv.layer_norm_bias", WHOLE),
    "self_attention.query_key_value.weight": ("self_attention.linear_qkv.weight", COLUMN),
    "self_attention.query_key_value.bias": ("self_attention.linear_qkv.bias", COLUMN),
    "self_attention.dense.weight": ("self_attention.linear_proj.weight", ROW),
    "self_attention.dense.bias": ("self_attention.linear_proj.bias", WHOLE),
    "post_attention_layernorm.weight": ("mlp.linear_fc1.layer_norm_weight", WHOLE),
    "post_attention_layernorm.bias": ("mlp.linear_fc1.layer_norm_bias", WHOLE),
    "mlp.dense_h_to_4h.weight": ("mlp.linear_fc1.weight", COLUMN),
    "mlp.dense_h_to_4h.bias": ("mlp.linear_fc1.bias", COLUMN),
    "mlp.dense_h_to_4h_2.weight": ("mlp.linear_fc1.weight", COLUMN),
    "mlp.dense_h_to_4h_2.bias": ("mlp.linear_fc1.bias", COLUMN),
    "mlp.dense_4h_to_h.weight": ("mlp.linear_fc2.weight", ROW),
    "mlp.dense_4h_to_h.bias": ("mlp.linear_fc2.bias", WHOLE),
}
# The same of Transformer Engine's layers (encoder.layers.N of a model with transformer_engine).
_ENGINE_NAMES = {
    "self_attention.layernorm_qkv.layer_norm_weight": ("self_attention.linear_qkv.layer_norm_weight", WHOLE),
    "self_attention.layernorm_qkv.layer_norm_bias": ("self_attention.linear_qkv.layer_norm_bias", WHOLE),
    "self_attention.layernorm_qkv.weight": ("self_attention.linear_qkv.weight", COLUMN),
    "self_attention.layernorm_qkv.bias": ("self_attention.linear_qkv.bias", COLUMN),
    "self_attention.proj.weight": ("self_attention.linear_proj.weight", ROW),
    "self_attention.proj.bias": ("self_attention.linear_proj.bias", WHOLE),
    "layernorm_mlp.layer_norm_weight": ("mlp.linear_fc1.layer_norm_weight", WHOLE),
    "layernorm_mlp.layer_norm_bias": ("mlp.linear_fc1.layer_norm_bias", WHOLE),
    "layernorm_mlp.fc1_weight": ("mlp.linear_fc1.weight", COLUMN),
    "layernorm_mlp.fc1_bias": ("mlp.linear_fc1.bias", COLUMN),
    "layernorm_mlp.fc2_weight": ("mlp.linear_fc2.weight", ROW),
    "layernorm_mlp.fc2_bias": ("mlp.linear_fc2.bias", WHOLE),
}
# And of megatron-core's, which has its norms in the layers they go into (with Transformer Engine) or beside them.
CORE_NAMES = {
    **{ours: (ours, axis) for ours, axis in _LAYER_NAMES.values()},
    "pre_mlp_layernorm.weight": ("mlp.linear_fc1.layer_norm_weight", WHOLE),
    "pre_mlp_layernorm.bias": ("mlp.linear_fc1.layer_norm_bias", WHOLE),
}
ANY_LAYER = {**CORE_NAMES, **_ENGINE_NAMES, **_LAYER_NAMES}
OTHER_NAMES = {
    "embedding.word_embeddings.weight": ("embedding.word_embeddings.weight", COLUMN),
    "embedding.position_embeddings.weight": ("embedding.position_embeddings.weight", WHOLE),
    "encoder.final_layernorm.weight": ("decoder.final_layernorm.weight", WHOLE),
    "encoder.final_layernorm.bias": ("decoder.final_layernorm.bias", WHOLE),
    "decoder.final_layernorm.weight": ("decoder.final_layernorm.weight", WHOLE),
    "decoder.final_layernorm.bias": ("decoder.final_layernorm.bias", WHOLE),
    "output_layer.weight": ("output_layer.weight", COLUMN),
}


def nemo_name(key: str) -> str:
    """NeMo's name of a tensor at tensor and pipeline parallel 1, from megatron-core's in a checkpoint."""
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", key)
    if layer:
        names = {ours: theirs for theirs, (ours, _) in reversed(_LAYER_NAMES.items())}
        return f"model.language_model.encoder.layers.{layer[1]}.{names[layer[2]]}"
    others = {ours: theirs for theirs, (ours, _) in reversed(OTHER_NAMES.items())}
    return f"model.language_model.{others[key]}"
