"""What ZeRO leaves of weights on a rank: parts of many tensors, flat, one behind the other, with padding at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """A rank's part of one weight.

    Attributes:
        weight: as the model has it, whose memory may be elsewhere.
        shape: of the whole weight.
        start: where the part begins in the flat tensor; offset: where in the weight, flat.
        count: its elements; none where all of the weight is on other ranks.
    """

    weight: nn.Parameter
    shape: tuple[int, ...]
    start: int
    offset: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        """The part, [count], in a tensor of the flat one's shape."""
        return flat.narrow(0, self.start, self.count)


Fragments = list[tuple[Tensor, list[Fragment]]]


def of_stage_1_or_2(zero: Any) -> Fragments:
    """Every flat fp32 tensor of a rank with its fragments, in the same order on every rank. `zero`: DeepSpeed's
    optimizer (runtime/zero/stage_1_and_2.py)."""
    return [
        (flat, [_linked(weight) for weight in weights])
        for flat, weights in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
    ]


def _linked(weight: Any) -> Fragment:
    found, shape = weight._hp_mapping, tuple(weight.shape)
    if found is None:
        return Fragment(weight, shape, 0, 0, 0)
    return Fragment(
        weight, shape, found.hp_fragment_address.start, found.lp_fragment_address.start, found.hp_fragment_address.numel
    )


def of_stage_3(zero: Any) -> Fragments:
    """The same of stage 3 (runtime/zero/stage3.py)."""
    return [
        (flat, [_divided(zero, weight) for weight in weights])
        for flat, weights in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
    ]


def _divided(zero: Any, weight: Any) -> Fragment:
    _, start, size = zero.grad_position[zero.get_param_id(weight)]
    offset = size * dist.get_rank(zero.dp_process_group)
    count = max(0, min(size, weight.ds_numel - offset))
    return Fragment(weight, tuple(weight.ds_shape), start, offset if count else 0, count)


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """Collective. `device`: of the ranks' messages; what is offloaded is elsewhere."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        sent = values.to(device)
        dist.all_reduce(sent)
        return sent.to(values.device)
    return values


def norms(flats: list[Tensor], fragments: list[Fragment], device: torch.device) -> list[list[float]]:
    """For every weight its norm in each of these flat tensors. Collective."""
    squares = torch.stack(
        [torch.stack([torch.linalg.vector_norm(one.of(flat)).square() for flat in flats]) for one in fragments]
    )
    found = sum_over_ranks(squares, device).sqrt().cpu()
    return [[float(value) for value in of_weight] for of_weight in found]
