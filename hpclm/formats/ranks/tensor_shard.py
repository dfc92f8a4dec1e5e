"""A piece of a global tensor, as checkpoints store it: `TensorShard`, or megatron-core's `ShardedTensor`, which has the
same attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Shard(Protocol):
    """What a checkpoint asks of a piece.

    Attributes:
        key: name of the whole tensor.
        data: this piece; a checkpoint is loaded into it.
        global_shape, global_offset, local_shape: of the whole, and where the piece is in it.
        replica_id: zero (or zeros) on the one rank that writes the piece.
        allow_shape_mismatch: a checkpoint's tensor may have fewer or more rows.
    """

    @property
    def key(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def global_shape(self) -> tuple[int, ...]: ...
    @property
    def global_offset(self) -> tuple[int, ...]: ...
    @property
    def local_shape(self) -> tuple[int, ...]: ...
    @property
    def replica_id(self) -> Any: ...
    @property
    def allow_shape_mismatch(self) -> bool: ...


@dataclass
class TensorShard:
    """A piece of a tensor (see `Shard`)."""

    key: str
    data: Tensor
    global_shape: tuple[int, ...]
    global_offset: tuple[int, ...]
    replica_id: int | tuple[int, ...] = 0
    allow_shape_mismatch: bool = False

    @property
    def local_shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


def whole(key: str, data: Tensor, *, writes: bool) -> TensorShard:
    """A tensor that this rank has whole. `writes`: whether it is the rank that writes it."""
    return TensorShard(key, data, tuple(data.shape), (0,) * data.dim(), 0 if writes else 1)


def divided(shards: Sequence[Shard], rank: int, size: int) -> list[Shard]:
    """The same shards, of which each is written by one of the ranks that have it, and each rank writes about as much.

    Args:
        shards: megatron-core's, in the same order on all ranks that have the same; the last number of a replica_id is
            that of the rank among them.
        rank, size: this rank among those, and how many they are.
    """
    written, found = [0] * size, list[Shard]()
    for shard in shards:
        writer = written.index(min(written))
        written[writer] += math.prod(shard.local_shape) * shard.data.element_size()
        replica = (*tuple(shard.replica_id)[:-1], 0 if writer == rank else 1)
        place = tuple(shard.global_offset)
        found.append(
            TensorShard(shard.key, shard.data, tuple(shard.global_shape), place, replica, shard.allow_shape_mismatch)
        )
    return found


def is_main_replica(shard: Any) -> bool:
    """True on the one rank that writes this piece."""
    replica = shard.replica_id
    return all(part == 0 for part in replica) if isinstance(replica, (list, tuple)) else replica == 0
