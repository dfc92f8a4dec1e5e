"""Random numbers that depend on names and not on the split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

# Rows and columns that are drawn from one generator: large enough for its own start to cost little, small enough for
# a rank's part of a matrix to have few tiles that it shares with others.
TILE = 128


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed from `seed` and a name, the same in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator seeded by `named_seed`."""
    return torch.Generator().manual_seed(named_seed(seed, name))


def normal_part(seed: int, name: str, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """A part of a matrix of standard normal numbers, fp32, that is without end in both directions.

    It consists of tiles of TILE · TILE numbers, each drawn from a generator named after the matrix and the tile's
    place. So a part has the same numbers whatever others are drawn, on any split, for any padding of the vocabulary,
    and costs time and memory for itself alone.

    Args:
        offset: of the part's first row and column.
        shape: rows and columns.
    """
    part = torch.empty(tuple(shape), dtype=torch.float32)
    rows, columns = (
        range(start // TILE, -(-(start + size) // TILE)) for start, size in zip(offset, shape, strict=True)
    )

    def draw(row: int) -> None:
        for column in columns:
            tile = torch.randn((TILE, TILE), generator=named_generator(seed, f"{name} tile {row} {column}"))
            ours, theirs = [], []
            for number, start, size in zip((row, column), offset, shape, strict=True):
                low, high = max(start, number * TILE), min(start + size, (number + 1) * TILE)
                ours.append(slice(low - start, high - start))
                theirs.append(slice(low - number * TILE, high - number * TILE))
            part[tuple(ours)] = tile[tuple(theirs)]

    # drawing lets go of the interpreter's lock
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(draw, rows))
    return part
