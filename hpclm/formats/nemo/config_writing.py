"""The configurations of archives that NeMo 1.x reads."""

from __future__ import annotations

from typing import Any

import yaml

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec, TaskTemplate
from hpclm.formats.sentencepiece_model import SUFFIX

# What NeMo calls the classes that restore the archives.
_GPT = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
_PROMPTS = (
    "nemo.collections.nlp.models.language_modeling.megatron_gpt_prompt_learning_model.MegatronGPTPromptLearningModel"
)
# hpclm's activations: NeMo's
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_exact": "gelu",
    "squared_relu": "squared-relu",
    "swiglu": "fast-swiglu",
    "geglu": "fast-geglu",
    "geglu_exact": "fast-geglu",
    "reglu": "fast-reglu",
}

# What newer models have beside NeMo's GPT.
_PLAIN = {"num_moe_experts": None, "qk_norm": False, "add_qkv_bias": False, "rotary_scaling_factor": None}


def _refuse_newer(model: ModelSpec) -> None:
    for key, plain in _PLAIN.items():
        if getattr(model, key) != plain:
            what = f"model.{key} is {getattr(model, key)}, which no NeMo archive of prompt learning has"
            raise CheckpointError(f"{what}; give --to huggingface")


def gpt_config(model: ModelSpec, files: list[str]) -> str:
    """model_config.yaml of a GPT model, with its tokenizer's `files`. Raises CheckpointError: NeMo has none."""
    _refuse_newer(model)
    vocabulary = next((f"nemo:{name}" for name in files if name.endswith("vocab.json")), None)
    merges = next((f"nemo:{name}" for name in files if name.endswith("merges.txt")), None)
    pieces = next((name for name in files if name.endswith(SUFFIX)), None)
    config: dict[str, Any] = {
        "target": _GPT,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "encoder_seq_length": model.max_position_embeddings,
        "max_position_embeddings": model.max_position_embeddings,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": None if model.num_query_groups == model.num_attention_heads else model.num_query_groups,
        "kv_channels": model.kv_channels,
        "position_embedding_type": "rope" if model.position_embedding == "rope" else "learned_absolute",
        "normalization": model.normalization,
        "layernorm_epsilon": model.layernorm_epsilon,
        "activation": _ACTIVATIONS[model.activation],
        # NeMo's gelu is the tanh form where it is fused with the bias, or with openai_gelu, and else the exact one
        "bias_activation_fusion": model.activation in ("gelu", "geglu") and model.add_bias_linear,
        "openai_gelu": model.activation in ("gelu", "geglu") and not model.add_bias_linear,
        "rotary_percentage": model.rotary_percent,
        "rotary_base": model.rotary_base,
        "seq_len_interpolation_factor": None if model.rotary_interpolation == 1.0 else model.rotary_interpolation,
        "bias": model.add_bias_linear,
        "share_embeddings_and_output_weights": model.tie_embeddings,
        "hidden_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "init_method_std": model.init_std,
        "make_vocab_size_divisible_by": 128,
        "pre_process": True,
        "post_process": True,
        "megatron_legacy": False,
        "megatron_amp_O2": False,
        "precision": 32,
        "tokenizer": {"library": "sentencepiece", "type": None, "model": f"nemo:{pieces}"}
        if pieces
        else {
            "library": "megatron",
            "type": "GPT2BPETokenizer",
            "model": None,
            "vocab_file": vocabulary,
            "merge_file": merges,
        },
    }
    return yaml.safe_dump(config, sort_keys=False)


# A key of our own, which NeMo ignores: how rows were read in training, as `data.semantics`
SEMANTICS = "hpclm_semantics"


def prompts_config(templates: list[TaskTemplate], base: str | None, semantics: str | None) -> str:
    """model_config.yaml of trained prompts, for inference. `base`, `semantics`: what they were trained with."""
    config: dict[str, Any] = {
        "target": _PROMPTS,
        "virtual_prompt_style": "inference",
        "existing_tasks": [template.taskname for template in templates],
        "new_tasks": [],
        "task_templates": [
            {
                "taskname": one.taskname,
                "prompt_template": one.prompt_template,
                "total_virtual_tokens": one.total_virtual_tokens,
                "virtual_token_splits": list(one.virtual_token_splits),
                "truncate_field": one.truncate_field,
                "answer_only_loss": one.answer_only_loss,
                "answer_field": one.answer_field,
            }
            for one in templates
        ],
    }
    if base is not None:
        config["language_model_path"] = base
    if semantics is not None:
        config[SEMANTICS] = semantics
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
