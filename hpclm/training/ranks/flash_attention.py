"""Causal attention over the rows of a packed sequence with torch's flash kernels, which take lengths.

Padding and copies are then not needed. The operators are those below torch.nn.attention.varlen (which newer versions of
torch have, with Python between that costs more than a small kernel).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hpclm.data.ranks.packed_layout import Segments

_WIDEST_HEAD = 256
_AMPERE = 8


def usable(query: Tensor) -> bool:
    """Whether this GPU has a kernel for such queries, [..., d]."""
    return usable_for(query.dtype, query.size(-1), query.device)


def usable_for(dtype: torch.dtype, width: int, device: torch.device) -> bool:
    """The same for heads of that width."""
    return _fits(dtype, width) and device.type == "cuda" and _has_kernel(device)


def takes(query: Tensor) -> bool:
    """Whether the kernel takes such queries, on a GPU that has it."""
    return _fits(query.dtype, query.size(-1))


def each_head(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values, [b, groups, s, d], for torch's scaled_dot_product_attention: repeated for each head of the
    query, [b, n, s, d], where no kernel of GPUs takes groups (torch would then keep every score)."""
    if query.size(1) == key.size(1) or not lacks_groups(query, mask):
        return key, value
    count = query.size(1) // key.size(1)
    return key.repeat_interleave(count, dim=1), value.repeat_interleave(count, dim=1)


def lacks_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Whether this is a GPU, and only its flash kernel takes groups of heads, which takes neither masks nor fp32."""
    return query.device.type == "cuda" and (mask is not None or not takes(query))


def _fits(dtype: torch.dtype, width: int) -> bool:
    return dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= _WIDEST_HEAD


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    major, _ = torch.cuda.get_device_capability(device)
    has: bool = major >= _AMPERE and torch.backends.cuda.is_flash_attention_available()
    return has


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
    """Query [s, n, d], key and value [s, groups, d]; the result is [s, n, d]."""
    if segments.key_index is not None:
        key, value = (states.index_select(0, segments.key_index) for states in (key, value))
    made: Tensor = _Flash.apply(query, key, value, segments, scale)  # type: ignore[no-untyped-call]
    return made


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float | None) -> Tensor:
        made: Tensor
        made, sums, random, unused, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, *_lengths(segments), 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(query, key, value, made, sums, random, unused)
        ctx.segments, ctx.scale = segments, scale
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, made, sums, random, unused = ctx.saved_tensors
        of_query, of_key, of_value = torch.ops.aten._flash_attention_backward(
            gradients[0].contiguous(), query, key, value, made, sums, *_lengths(ctx.segments), 0.0, True,
            random, unused, scale=ctx.scale,
        )  # fmt: skip
        return of_query, of_key, of_value, None, None


def _lengths(segments: Segments) -> tuple[Tensor, Tensor, int, int]:
    return segments.queries, segments.keys, segments.longest_query, segments.longest_key
