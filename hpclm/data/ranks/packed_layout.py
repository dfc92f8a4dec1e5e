"""Where rows lie in a packed sequence, and how attention unpacks and packs them again."""

from __future__ import annotations

import torch
from torch import Tensor


class Layout:
    """Where the rows of a packed sequence lie, as one int64 tensor [1 + shared, rows, width + extra].

    It is a tensor, since megatron-core passes it to the attention as the attention mask, and keeps it for the backward
    pass when activations are recomputed. Every entry of the first axis is the same (a view): its length says how many
    positions the prefix has that all rows share. The first `width` columns are the positions of each row's own tokens
    in the sequence (padded with 0), which unpack it; the others, read row by row, each position's place in [rows ·
    (shared + width)], which packs again.
    """

    def __init__(self, tensor: Tensor, length: int) -> None:
        self.shared, self.rows = tensor.size(0) - 1, tensor.size(1)
        self.width = tensor.size(2) - -(-length // self.rows)
        table = tensor[0]
        self.unpack_index = table[:, : self.width].reshape(-1)
        self.pack_index = table[:, self.width :].reshape(-1)[:length]

    @staticmethod
    def make(shared: int, starts: list[int], counts: list[int], length: int) -> Tensor:
        """The tensor for rows whose own tokens begin at `starts`, in a sequence of `length`, on the CPU."""
        rows, width = max(1, len(starts)), max([1, *counts])
        whole = shared + width
        unpack = torch.zeros((rows, width), dtype=torch.int64)
        pack = torch.zeros(rows * -(-length // rows), dtype=torch.int64)
        pack[:shared] = torch.arange(shared)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            unpack[row, :count] = torch.arange(start, start + count)
            pack[start : start + count] = row * whole + shared + torch.arange(count)
        return torch.cat([unpack, pack.view(rows, -1)], dim=1).expand(1 + shared, -1, -1)

    def unpack(self, states: Tensor) -> Tensor:
        """[s, 1, n, d] → [rows, n, shared + width, d]; gradients of the shared prefix sum over the rows."""
        prefix = states[: self.shared, 0].unsqueeze(0).expand(self.rows, -1, -1, -1)
        own = states[:, 0].index_select(0, self.unpack_index).view(self.rows, self.width, *states.shape[2:])
        return torch.cat([prefix, own], dim=1).transpose(1, 2)

    def pack(self, context: Tensor) -> Tensor:
        """[rows, n, shared + width, d] → [s, 1, n · d]."""
        return context.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self.pack_index).unsqueeze(1)
