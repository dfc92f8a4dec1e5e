"""A module's parameters as named pieces of global tensors (megatron-core's `ShardedTensor`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

from hpclm.formats.ranks.tensor_shard import Shard, TensorShard

# One key per layer ("decoder.layers.3.…") rather than one stacked tensor: names match what users know.
_METADATA = {"non_homogeneous_layers": True}
_EXPERTS = ".mlp.experts."
_STACKED = ".mlp.experts.experts."


def sharded_tensors(module: MegatronModule, prefix: str = "") -> list[Shard]:
    """Every parameter and buffer of `module` held by this rank, with its place in the global tensor.

    `data` is the parameter's own storage (a view of it where megatron-core splits a fused weight, as SwiGLU's), so
    writing to it sets the weight.
    """
    return [_of_one_expert(one) for one in megatron_shards(module, prefix)]


def megatron_shards(module: MegatronModule, prefix: str = "") -> list[ShardedTensor]:
    """The same as megatron-core tells it."""
    return list(_flat(module.sharded_state_dict(prefix=prefix, metadata=dict(_METADATA))))


def is_of_expert(shard: Shard) -> bool:
    """Whether it, or the optimizer's state of it, belongs to an expert, which other ranks have than the rest."""
    return _EXPERTS in shard.key


def _of_one_expert(shard: ShardedTensor) -> Shard:
    """megatron-core stacks the experts of a layer; here each has a key of its own ("….mlp.experts.7.…")."""
    if not shard.prepend_axis_num:
        same: Shard = shard
        return same
    number, *place = shard.global_offset
    key = shard.key.replace(_STACKED, f"{_EXPERTS}{number}.")
    shape = tuple(shard.global_shape[1:])
    return TensorShard(key, shard.data, shape, tuple(place), shard.replica_id, shard.allow_shape_mismatch)


def _flat(value: Any) -> Iterator[ShardedTensor]:
    if isinstance(value, ShardedTensor):
        yield value
    elif isinstance(value, ShardedTensorFactory):
        yield from _flat(value.build())
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    # ShardedObject carries Transformer Engine's extra state, which the layers used here do not have
