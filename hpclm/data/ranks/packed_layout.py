"""Where rows lie in a packed sequence, and how attention reads them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """A packed sequence for attention with lengths: the shared prefix, where there is one, then the rows.

    Attributes:
        queries, keys: int32 [segments + 1], where each begins and the last one ends; a row's keys are those of the
            prefix and its own.
        longest_query, longest_key: in tokens.
        key_index: int64 [keys], positions in the sequence; None where the keys are the sequence as it is.
    """

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int
    key_index: Tensor | None


@functools.lru_cache(maxsize=16)
def last_of(rows: int, queries: int, keys: int, device: torch.device) -> Segments:
    """Of rows of equal length, of which only the last positions are queries."""
    numbers = torch.arange(rows + 1, dtype=torch.int32, device=device)
    return Segments(
        queries=numbers * queries, keys=numbers * keys, longest_query=queries, longest_key=keys, key_index=None
    )


class Layout:
    """Where the rows of a packed sequence lie, as one int64 tensor [1 + shared, rows, width + extra + 1].

    It is a tensor, since megatron-core passes it to the attention as the attention mask, and keeps it for the backward
    pass when activations are recomputed. Every entry of the first axis is the same (a view): its length says how many
    positions the prefix has that all rows share. The first `width` columns are the positions of each row's own tokens
    in the sequence (filled up with 0), which unpack it; the next ones, read row by row, each position's place in [rows
    · (shared + width)], which packs again; the last one is how many own tokens a row has. What the sequence is rounded
    up by belongs to the last row.
    """

    def __init__(self, tensor: Tensor, length: int) -> None:
        self.shared, self.rows = tensor.size(0) - 1, tensor.size(1)
        self.length = length
        self.width = tensor.size(2) - -(-length // self.rows) - 1
        table = tensor[0]
        self.unpack_index = table[:, : self.width].reshape(-1)
        self.pack_index = table[:, self.width : -1].reshape(-1)[:length]
        self.counts = table[:, -1]

    @staticmethod
    def make(shared: int, counts: list[int], length: int, *, few_widths: bool = False) -> Tensor:
        """The tensor, on the CPU, for rows of `counts` own tokens that follow the prefix one after the other in a
        sequence of `length`; with `few_widths` the width is a power of two."""
        counts = list(counts) or [0]
        counts[-1] = length - shared - sum(counts[:-1])
        rows, width = len(counts), max(1, *counts)
        width = 1 << (width - 1).bit_length() if few_widths else width
        whole = shared + width
        unpack = torch.zeros((rows, width), dtype=torch.int64)
        pack = torch.zeros(rows * -(-length // rows), dtype=torch.int64)
        pack[:shared] = torch.arange(shared)
        start = shared
        for row, count in enumerate(counts):
            unpack[row, :count] = torch.arange(start, start + count)
            pack[start : start + count] = row * whole + shared + torch.arange(count)
            start += count
        own = torch.tensor(counts, dtype=torch.int64).unsqueeze(1)
        return torch.cat([unpack, pack.view(rows, -1), own], dim=1).expand(1 + shared, -1, -1)

    def unpack(self, states: Tensor) -> Tensor:
        """[s, 1, n, d] → [rows, n, shared + width, d]; gradients of the shared prefix sum over the rows."""
        prefix = states[: self.shared, 0].unsqueeze(0).expand(self.rows, -1, -1, -1)
        own = states[:, 0].index_select(0, self.unpack_index).view(self.rows, self.width, *states.shape[2:])
        return torch.cat([prefix, own], dim=1).transpose(1, 2)

    def pack(self, context: Tensor) -> Tensor:
        """[rows, n, shared + width, d] → [s, 1, n · d]."""
        return context.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self.pack_index).unsqueeze(1)

    @functools.cached_property
    def segments(self) -> Segments:
        """Made where the layout is, without a word to the host."""
        if self.shared == 0:
            ends = _ends(self.counts)
            return Segments(ends.int(), ends.int(), self.width, self.width, None)
        prefix = self.counts.new_full((1,), self.shared)
        queries = _ends(torch.cat([prefix, self.counts]))
        keys = _ends(torch.cat([prefix, self.counts + self.shared]))
        place = torch.arange(self.length + self.rows * self.shared, device=keys.device)
        segment = torch.searchsorted(keys, place, right=True) - 1
        within = place - keys[segment]
        own = queries[segment] + within - self.shared
        index = torch.where((segment == 0) | (within < self.shared), within, own)
        whole = self.shared + self.width
        return Segments(queries.int(), keys.int(), max(self.shared, self.width), whole, index)


def _ends(counts: Tensor) -> Tensor:
    """[n] → [n + 1]: 0, then the sums."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def documents_layout(tokens: Tensor, end: int) -> Tensor:
    """The layout in which each document of rows int64 [b, s], up to and with its end token, attends to itself alone;
    the rows then are one sequence of b · s tokens. The mask of megatron-core's gpt_dataset.py with
    reset_attention_mask."""
    rows, length = tokens.shape
    stops = (tokens == end).flatten().nonzero().flatten() + 1
    stops = torch.unique(torch.cat([stops, torch.arange(1, rows + 1) * length]))
    counts = torch.diff(stops, prepend=torch.zeros(1, dtype=stops.dtype))
    return Layout.make(0, counts.tolist(), rows * length)


_latest: tuple[Tensor, Layout] | None = None


def layout_of(tensor: Tensor, length: int) -> Layout:
    """The layout that `tensor` is; the layers of a micro-batch ask one after the other and get the same object."""
    global _latest
    if _latest is None or _latest[0] is not tensor:
        _latest = tensor, Layout(tensor, length)
    return _latest[1]
