"""Tensors to a device in one copy: each copy of pageable memory blocks the host, and a micro-batch has nine tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_ALIGNMENT = 16


def moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors (of the host) on `device`; to a GPU they go together, from page-locked memory, and nothing waits.

    A view of many equal entries (stride 0) stays one.
    """
    if device.type == "cpu":
        return dict(tensors)
    if device.type != "cuda":
        return {name: expanded(base_of(one).to(device), one) for name, one in tensors.items()}
    staged, places = stage(tensors, pin=True)
    there = staged.to(device, non_blocking=True)
    return {name: expanded(placed(there, tensors[name], start), tensors[name]) for name, start in places.items()}


def stage(tensors: Mapping[str, Tensor], *, pin: bool) -> tuple[Tensor, dict[str, int]]:
    """All tensors in one of bytes, and where each begins."""
    places, end = {}, 0
    for name, tensor in tensors.items():
        places[name] = end
        size = base_of(tensor).numel() * tensor.element_size()
        end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
    staged = torch.empty(end, dtype=torch.uint8, pin_memory=pin)
    for name, tensor in tensors.items():
        placed(staged, tensor, places[name]).copy_(base_of(tensor))
    return staged, places


def placed(staged: Tensor, like: Tensor, start: int) -> Tensor:
    """The part of `staged` that is a tensor as `like` (without its stride-0 axis)."""
    base = base_of(like)
    return staged[start : start + base.numel() * like.element_size()].view(like.dtype).view(base.shape)


def base_of(tensor: Tensor) -> Tensor:
    """Without the repeats of a view of many equal entries."""
    return tensor[0] if _is_repeated(tensor) else tensor


def expanded(base: Tensor, like: Tensor) -> Tensor:
    """`base_of` undone."""
    return base.expand(like.shape) if _is_repeated(like) else base


def _is_repeated(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.stride(0) == 0
