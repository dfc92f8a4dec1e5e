"""Weights that lie in the files of an archive, found without torch: each tensor whole, and where its pieces are."""

from __future__ import annotations

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
