"""Which tensors of transformers' models a tensor of hpclm's checkpoints is made of, and how.

Names: transformers 4.53 to 5.24, models/gpt2/modeling_gpt2.py, models/llama/modeling_llama.py, models/qwen2, qwen3 and
mixtral.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hpclm.core.spec import ModelSpec

Rule = Literal["same", "transposed", "qkv", "fused_qkv", "joined"]


@dataclass(frozen=True)
class Source:
    """How a tensor is made.

    Attributes:
        names: transformers' tensors.
        rule: `same`; `transposed` (GPT-2 stores its products' weights so); `qkv`: queries, keys and values of each
            group one after the other; `fused_qkv`: the same from GPT-2's one transposed tensor; `joined`: one behind
            the other (the gate, then the values of a gated MLP).
        vocabulary: whether its rows are those of the vocabulary, which megatron-core pads.
    """

    names: tuple[str, ...]
    rule: Rule = "same"
    vocabulary: bool = False


def sources(model: ModelSpec) -> dict[str, Source]:
    """By the names of hpclm's tensors: megatron-core's, a layer's norms as Transformer Engine calls them."""
    return dict(_gpt2(model) if model.position_embedding == "learned" else _llama(model))


def _gpt2(model: ModelSpec) -> Iterator[tuple[str, Source]]:
    yield "embedding.word_embeddings.weight", Source(("transformer.wte.weight",), vocabulary=True)
    yield "embedding.position_embeddings.weight", Source(("transformer.wpe.weight",))
    for layer in range(model.num_layers):
        here, there = f"decoder.layers.{layer}.", f"transformer.h.{layer}."
        for kind in ("weight", "bias"):
            yield f"{here}self_attention.linear_qkv.layer_norm_{kind}", Source((f"{there}ln_1.{kind}",))
            yield f"{here}self_attention.linear_qkv.{kind}", Source((f"{there}attn.c_attn.{kind}",), "fused_qkv")
            rule: Rule = "transposed" if kind == "weight" else "same"
            yield f"{here}self_attention.linear_proj.{kind}", Source((f"{there}attn.c_proj.{kind}",), rule)
            yield f"{here}mlp.linear_fc1.layer_norm_{kind}", Source((f"{there}ln_2.{kind}",))
            yield f"{here}mlp.linear_fc1.{kind}", Source((f"{there}mlp.c_fc.{kind}",), rule)
            yield f"{here}mlp.linear_fc2.{kind}", Source((f"{there}mlp.c_proj.{kind}",), rule)
    for kind in ("weight", "bias"):
        yield f"decoder.final_layernorm.{kind}", Source((f"transformer.ln_f.{kind}",))
    if not model.tie_embeddings:
        yield "output_layer.weight", Source(("lm_head.weight",), vocabulary=True)


def _llama(model: ModelSpec) -> Iterator[tuple[str, Source]]:
    yield "embedding.word_embeddings.weight", Source(("model.embed_tokens.weight",), vocabulary=True)
    for layer in range(model.num_layers):
        here, there = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        yield f"{here}self_attention.linear_qkv.layer_norm_weight", Source((f"{there}input_layernorm.weight",))
        for kind in ("weight", "bias") if model.add_qkv_bias else ("weight",):
            names = tuple(f"{there}self_attn.{part}_proj.{kind}" for part in "qkv")
            yield f"{here}self_attention.linear_qkv.{kind}", Source(names, "qkv")
        if model.qk_norm:
            yield f"{here}self_attention.q_layernorm.weight", Source((f"{there}self_attn.q_norm.weight",))
            yield f"{here}self_attention.k_layernorm.weight", Source((f"{there}self_attn.k_norm.weight",))
        yield f"{here}self_attention.linear_proj.weight", Source((f"{there}self_attn.o_proj.weight",))
        norm = Source((f"{there}post_attention_layernorm.weight",))
        if model.num_moe_experts is not None:
            yield f"{here}pre_mlp_layernorm.weight", norm
            yield from _experts(model.num_moe_experts, here, there)
            continue
        yield f"{here}mlp.linear_fc1.layer_norm_weight", norm
        halves = tuple(f"{there}mlp.{part}_proj.weight" for part in ("gate", "up"))
        yield f"{here}mlp.linear_fc1.weight", Source(halves, "joined")
        yield f"{here}mlp.linear_fc2.weight", Source((f"{there}mlp.down_proj.weight",))
    yield "decoder.final_layernorm.weight", Source(("model.norm.weight",))
    if not model.tie_embeddings:
        yield "output_layer.weight", Source(("lm_head.weight",), vocabulary=True)


def _experts(count: int, here: str, there: str) -> Iterator[tuple[str, Source]]:
    """Mixtral's, as its files have them: w1 is the gate, w3 the values, w2 the way back."""
    yield f"{here}mlp.router.weight", Source((f"{there}block_sparse_moe.gate.weight",))
    for expert in range(count):
        ours, theirs = f"{here}mlp.experts.{expert}.", f"{there}block_sparse_moe.experts.{expert}."
        yield f"{ours}linear_fc1.weight", Source((f"{theirs}w1.weight", f"{theirs}w3.weight"), "joined")
        yield f"{ours}linear_fc2.weight", Source((f"{theirs}w2.weight",))


def shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Of hpclm's tensors, the vocabulary without padding."""
    hidden, width = model.hidden_size, model.kv_channels
    rows = width * (model.num_attention_heads + 2 * model.num_query_groups)
    first = model.ffn_hidden_size * (2 if model.gated else 1)
    ends: dict[str, tuple[int, ...]] = {
        "word_embeddings.weight": (model.vocab_size, hidden),
        "position_embeddings.weight": (model.max_position_embeddings, hidden),
        "output_layer.weight": (model.vocab_size, hidden),
        "linear_qkv.weight": (rows, hidden),
        "linear_qkv.bias": (rows,),
        "linear_proj.weight": (hidden, width * model.num_attention_heads),
        "linear_fc1.weight": (first, hidden),
        "linear_fc1.bias": (first,),
        "linear_fc2.weight": (hidden, model.ffn_hidden_size),
        "q_layernorm.weight": (width,),
        "k_layernorm.weight": (width,),
        "router.weight": (model.num_moe_experts or 0, hidden),
    }
    return {name: ends.get(".".join(name.split(".")[-2:]), (hidden,)) for name in sources(model)}
