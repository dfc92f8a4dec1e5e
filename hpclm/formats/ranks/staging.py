"""Copies of tensors in host memory, which are written while the training changes the tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Staging:
    """Buffers that are kept from one checkpoint to the next: allocating pinned memory takes longer than filling it."""

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def copies(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The values that the tensors have now. Those of the last call are then overwritten."""
        kept, self.buffers = self.buffers, []
        for number, tensor in enumerate(tensors):
            buffer = kept[number] if number < len(kept) else None
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = _room_for(tensor)
            buffer.copy_(tensor.detach(), non_blocking=True)
            self.buffers.append(buffer)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()
        return list(self.buffers)


def _room_for(tensor: Tensor) -> Tensor:
    """Pinned where the tensor is a GPU's, and memory can be."""
    if tensor.is_cuda:
        try:
            return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        except RuntimeError:
            pass  # locked memory is limited; the copy is then slower
    return torch.empty(tensor.shape, dtype=tensor.dtype)
