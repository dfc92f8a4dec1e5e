"""The tensors that a model has, by hpclm's names, to compare those of a checkpoint with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpclm.core.errors import CheckpointError
from hpclm.core.spec import ModelSpec
from hpclm.formats.stored_weights import Weight

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(?:mlp\.experts\.(\d+)\.)?")
_MOST_PIECES = 4096


def check(where: str, model: ModelSpec, weights: dict[str, Weight]) -> None:
    """Raises CheckpointError where tensors are missing, unknown, of another shape, or not covered once by their pieces.

    Args:
        where: the checkpoint, for messages.
    """
    found = [matched for matched in map(_LAYER.match, weights) if matched]
    counts = (
        ("layers", model.num_layers, {int(one[1]) for one in found}),
        ("experts", model.num_moe_experts or 0, {int(one[2]) for one in found if one[2]}),
    )
    for what, wanted, numbers in counts:
        if len(numbers) != wanted:
            raise CheckpointError(f"{where}: has {len(numbers)} {what}, its arguments say {wanted}")
    expected = dict(_tensors(model))
    for name in sorted(expected.keys() - weights.keys() - _optional(expected)):
        raise CheckpointError(f"{where}: contains no {name}, which its arguments require; copy the checkpoint again")
    for name in sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"{where}: contains {name}, which models of hpclm have not")
    for name, weight in weights.items():
        shape = weight.shape
        if name in VOCABULARY and shape[:1] >= expected[name][:1]:
            shape = (*expected[name][:1], *shape[1:])
        if shape != expected[name]:
            raise CheckpointError(f"{where}: {name} is {weight.shape}, its arguments say {expected[name]}")
        check_covered(where, name, weight)


def check_covered(where: str, name: str, weight: Weight) -> None:
    """Pieces inside of the tensor, as many values as it has, and none of them twice."""
    if not weight.is_complete or len(weight.pieces) > _MOST_PIECES:
        raise CheckpointError(f"{where}: {name} is not complete, or damaged; copy the checkpoint again")
    if weight.overlaps:
        raise CheckpointError(f"{where}: parts of {name} overlap; it is damaged")


def _optional(expected: dict[str, tuple[int, ...]]) -> set[str]:
    """Routers have no biases before megatron-core 0.13."""
    return {name for name in expected if name.endswith("router.bias")}


def _tensors(model: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = model.hidden_size
    yield "embedding.word_embeddings.weight", (model.vocab_size, hidden)
    if model.position_embedding == "learned":
        yield "embedding.position_embeddings.weight", (model.max_position_embeddings, hidden)
    if not model.tie_embeddings:
        yield "output_layer.weight", (model.vocab_size, hidden)
    yield from _norm(model, "decoder.final_layernorm.", hidden)
    for layer in range(model.num_layers):
        yield from _layer(model, f"decoder.layers.{layer}.")


def _layer(model: ModelSpec, here: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, query = model.hidden_size, model.kv_channels * model.num_attention_heads
    attention, rows = f"{here}self_attention.", query + 2 * model.kv_channels * model.num_query_groups
    yield from _norm(model, f"{attention}linear_qkv.layer_norm_", hidden)
    yield from _linear(f"{attention}linear_qkv.", rows, hidden, bias=model.add_bias_linear or model.add_qkv_bias)
    if model.qk_norm:
        yield from _norm(model, f"{attention}q_layernorm.", model.kv_channels)
        yield from _norm(model, f"{attention}k_layernorm.", model.kv_channels)
    yield from _linear(f"{attention}linear_proj.", hidden, query, bias=model.add_bias_linear)
    if model.num_moe_experts is None:
        yield from _norm(model, f"{here}mlp.linear_fc1.layer_norm_", hidden)
        yield from _mlp(model, f"{here}mlp.")
        return
    yield from _norm(model, f"{here}pre_mlp_layernorm.", hidden)
    yield f"{here}mlp.router.weight", (model.num_moe_experts, hidden)
    if model.add_bias_linear:
        yield f"{here}mlp.router.bias", (model.num_moe_experts,)
    for expert in range(model.num_moe_experts):
        yield from _mlp(model, f"{here}mlp.experts.{expert}.")


def _mlp(model: ModelSpec, here: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    first = model.ffn_hidden_size * (2 if model.gated else 1)
    yield from _linear(f"{here}linear_fc1.", first, model.hidden_size, bias=model.add_bias_linear)
    yield from _linear(f"{here}linear_fc2.", model.hidden_size, model.ffn_hidden_size, bias=model.add_bias_linear)


def _norm(model: ModelSpec, here: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{here}weight", (width,)
    if model.normalization != "rmsnorm":
        yield f"{here}bias", (width,)


def _linear(here: str, rows: int, columns: int, *, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{here}weight", (rows, columns)
    if bias:
        yield f"{here}bias", (rows,)
