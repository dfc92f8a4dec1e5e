"""Tensors that may be divided over ranks (DTensors): this rank's part, the whole, and norms of the whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor | None) -> Tensor:
    """This rank's part, which shares its memory."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Gathered from all ranks. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(part: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a tensor that is divided as `other` is."""
    if not isinstance(other, DTensor):
        return part
    return DTensor.from_local(
        part, other.device_mesh, other.placements, run_check=False, shape=other.shape, stride=other.stride()
    )


def norm_of(tensor: Tensor) -> float:
    """Of the whole tensor, wherever its parts are. Collective."""
    return float(whole(torch.linalg.vector_norm(tensor)))
