"""Rows put together into samples of a given length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows by sample: each row goes into the first sample that has room for it (Johnson et al. 1974, first fit).

    A tree over the samples holds the most room below each node, so a row takes log(samples) steps. A row longer than
    `capacity` has a sample of its own.
    """
    size = 1 << max(1, (len(lengths) - 1).bit_length())
    room = np.full(2 * size, capacity, dtype=np.int64)
    tree: list[int] = room.tolist()
    samples: list[list[int]] = []
    for row, length in enumerate(lengths):
        node = 1
        wanted = min(length, capacity)
        while node < size:
            node *= 2
            if tree[node] < wanted:
                node += 1
        place = node - size
        if place == len(samples):
            samples.append([])
        samples[place].append(row)
        tree[node] -= wanted
        while node > 1:
            node //= 2
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
    return samples
