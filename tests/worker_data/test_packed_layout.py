"""Attention with lengths over a packed sequence reads the same as attention over its rows, one by one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hpclm.data.ranks.packed_layout import Layout, Segments, layout_of


def by_segments(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments) -> torch.Tensor:
    """What a flash kernel with lengths does: causal, each segment's last query at its last key."""
    if segments.key_index is not None:
        key, value = key[segments.key_index], value[segments.key_index]
    made = torch.full_like(query, torch.nan)
    assert len(segments.queries) == len(segments.keys)
    for n in range(len(segments.queries) - 1):
        a, b = segments.queries[n : n + 2].tolist()
        c, d = segments.keys[n : n + 2].tolist()
        assert b - a <= segments.longest_query
        assert d - c <= segments.longest_key
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(diagonal=(d - c) - (b - a))
        q, k, v = (one.transpose(0, 1) for one in (query[a:b], key[c:d], value[c:d]))
        made[a:b] = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
    return made


@pytest.mark.parametrize(
    ("shared", "counts", "length"),
    [(0, [5, 1, 7], 13), (3, [5, 1, 7], 16), (3, [5, 1, 7], 20), (4, [2], 6), (0, [], 4), (2, [1, 0, 3], 6)],
)
def test_segments_read_what_rows_read(shared: int, counts: list[int], length: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(length, 2, 8, dtype=torch.float64) for _ in range(3))
    layout = Layout(Layout.make(shared, counts, length), length)
    made = by_segments(query, key, value, layout.segments)
    q, k, v = (layout.unpack(one.unsqueeze(1)) for one in (query, key, value))
    expected = layout.pack(functional.scaled_dot_product_attention(q, k, v, is_causal=True))[:, 0]
    torch.testing.assert_close(made.flatten(1), expected)
    ends = layout.segments.queries.tolist()
    assert ends[0] == 0
    assert ends[-1] == length


def test_the_layers_of_a_micro_batch_share_a_layout() -> None:
    one, other = Layout.make(0, [2, 2], 4), Layout.make(0, [2, 2], 4)
    assert layout_of(one, 4) is layout_of(one, 4)
    assert layout_of(other, 4) is not layout_of(one, 4)
