"""Weights that lie in the files of an archive, found without torch: each tensor whole, and where its pieces are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from hpclm.formats.torch_pickles import TensorFacts


@dataclass(frozen=True)
class Piece:
    """A part of a tensor.

    Attributes:
        offset: where it begins in the whole one, an index an axis.
        facts: its values, looked up when they are needed: the file that has them may have to be opened for it.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    facts: Callable[[], TensorFacts]

    @classmethod
    def of(cls, facts: TensorFacts, offset: tuple[int, ...]) -> Piece:
        return cls(offset, facts.shape, lambda: facts)


@dataclass
class Weight:
    """One of megatron-core's tensors, whole: its shape, its dtype as torch calls it, and its pieces."""

    shape: tuple[int, ...]
    dtype: str
    pieces: list[Piece] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all pieces are inside, and have as many values as there are."""
        inside = all(_is_inside(one.offset, one.shape, self.shape) for one in self.pieces)
        return inside and sum(math.prod(one.shape) for one in self.pieces) == math.prod(self.shape)

    @property
    def overlaps(self) -> bool:
        """Whether a value is in two pieces of a complete one."""
        return any(_meet(one, other) for one, other in itertools.combinations(self.pieces, 2))


def _is_inside(offset: tuple[int, ...], sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if not len(offset) == len(sizes) == len(shape):
        return False
    return all(at >= 0 and at + size <= most for at, size, most in zip(offset, sizes, shape, strict=True))


def _meet(one: Piece, other: Piece) -> bool:
    both = zip(one.offset, one.shape, other.offset, other.shape, strict=True)
    return all(a < b + more and b < a + size for a, size, b, more in both)
