"""A module's parameters as named pieces of global tensors (megatron-core's `ShardedTensor`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

# One key per layer ("decoder.layers.3.…") rather than one stacked tensor: names match what users know.
_METADATA = {"non_homogeneous_layers": True}


def sharded_tensors(module: MegatronModule, prefix: str = "") -> list[ShardedTensor]:
    """Every parameter and buffer of `module` held by this rank, with its place in the global tensor.

    `data` is the parameter's own storage (a view of it where megatron-core splits a fused weight, as SwiGLU's), so
    writing to it sets the weight.
    """
    state = module.sharded_state_dict(prefix=prefix, metadata=dict(_METADATA))
    return list(_flat(state))


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
