"""Parts of parameters that a rank updates, and their places in the checkpoint's tensors.

Under the distributed optimizer a rank's share of a parameter is a range of its elements in storage order, which begins
and ends anywhere. A checkpoint stores boxes: such a range of a matrix is a part of a row, whole rows and a part of a
row, so that any split reads what any other wrote, as it reads weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor, nn

from hpclm.formats.ranks.parameters import attributes
from hpclm.formats.ranks.tensor_shard import Shard, TensorShard


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of a parameter in storage order; with `stop` None the whole of it, in its own shape."""

    parameter: nn.Parameter
    start: int = 0
    stop: int | None = None

    @property
    def range(self) -> tuple[int, int]:
        return self.start, self.parameter.numel() if self.stop is None else self.stop

    def weight(self) -> Tensor:
        """The weights themselves, not a copy."""
        return self._of(self.parameter.detach())

    def gradient(self) -> Tensor:
        """fp32, as summed over data-parallel ranks."""
        return self._of(attributes(self.parameter).main_grad)

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor if self.stop is None else tensor.view(-1)[self.start : self.stop]


def whole_parameters(module: nn.Module) -> list[Part]:
    """All that is trained."""
    return [Part(one) for one in module.parameters() if one.requires_grad]


def owned_parts(model: DistributedDataParallel) -> list[Part]:
    """This rank's share of each bucket of gradients: the elements that its reduce-scatter gives it
    (param_and_grad_buffer.py, shard_buffer)."""
    parts: list[Part] = []
    for buffer in (*model.buffers, *model.expert_parallel_buffers):
        rank, size = buffer.data_parallel_group.rank(), buffer.data_parallel_world_size
        for bucket in buffer.buckets:
            each = bucket.grad_data.numel() // size
            first = bucket.offset + rank * each
            for parameter in bucket.params_list:
                begin, end, _ = buffer.param_index_map[parameter]
                low, high = max(begin, first), min(end, first + each)
                if low < high:
                    parts.append(Part(parameter, low - begin, high - begin))
    return parts


@dataclass(frozen=True)
class Piece:
    """A box of a shard, and which elements of a part's values are in it."""

    of: Shard
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    shared: bool

    def shard(self, key: str, values: Tensor) -> TensorShard:
        """The box of `values`, which are a part's."""
        count = math.prod(self.shape)
        data = values.reshape(-1)[self.start : self.start + count].view(self.shape)
        place = tuple(map(sum, zip(self.of.global_offset, self.offset, strict=True)))
        replica: Any = self.of.replica_id
        if self.shared:
            # data-parallel ranks have different parts, and each writes its own
            replica = (*replica[:-1], 0)
        return TensorShard(key, data, tuple(self.of.global_shape), place, replica, self.of.allow_shape_mismatch)


class PlacedParts:
    """Finds the parts, and the values that belong to each, in a checkpoint's shards of the weights."""

    def __init__(self, parts: Sequence[Part], values: Sequence[Tensor]) -> None:
        self.parts = defaultdict[int, list[tuple[Part, Tensor]]](list)
        self.parameters: dict[int, nn.Parameter] = {}
        for part, value in zip(parts, values, strict=True):
            self.parts[id(part.parameter)].append((part, value))
            self.parameters[id(part.parameter)] = part.parameter
        self.beginnings = {one.data_ptr(): name for name, one in self.parameters.items()}

    def of(self, shard: Shard) -> Iterator[tuple[Piece, Tensor]]:
        """Boxes of `shard` with the values that they are a part of."""
        found = self._parameter(shard)
        if found is None:
            return
        data: Tensor = shard.data
        first = (data.data_ptr() - self.parameters[found].data_ptr()) // data.element_size()
        for part, values in self.parts[found]:
            start, stop = part.range
            low, high = max(start, first), min(stop, first + data.numel())
            if low < high:
                for offset, shape, place in boxes(tuple(shard.local_shape), low - first, high - first):
                    yield Piece(shard, offset, shape, place + first - start, part.stop is not None), values

    def _parameter(self, shard: Shard) -> int | None:
        """The parameter whose storage `shard` is, or a part of, as SwiGLU's fused weight is stored as two."""
        pointer: int = shard.data.data_ptr()
        if pointer in self.beginnings:
            return self.beginnings[pointer]
        for name, one in self.parameters.items():
            if one.data_ptr() <= pointer < one.data_ptr() + one.numel() * one.element_size():
                return name
        return None


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Elements [start, stop) of a tensor, in storage order, as boxes: offset, shape, and the first element of each."""
    if len(shape) < 2:
        yield (start,), (stop - start,), start
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        yield from _in_row(shape, last, start, stop)
        return
    if start < first * row:
        yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:]), first * row
    if last * row < stop:
        yield from _in_row(shape, last, last * row, stop)


def _in_row(
    shape: tuple[int, ...], row: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    begin = row * math.prod(shape[1:])
    for offset, size, place in boxes(shape[1:], start - begin, stop - begin):
        yield (row, *offset), (1, *size), place + begin
