"""How the tensors that tensor ranks have stored make up megatron-core's whole ones."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive
from hpclm.formats.stored_weights import Piece, Weight
from hpclm.formats.torch_pickles import TensorFacts

# The axis that tensor ranks share.
COLUMN, ROW, WHOLE = 0, 1, None


@dataclass(frozen=True)
class RankParts:
    """How an archive's tensors are laid out.

    Attributes:
        heads: attention heads of the model.
        gated: the MLP's first layer includes a gate.
        legacy: query, key and value are stored one after the other for all heads, not head by head.
        two: a gated MLP has its gate in a separate tensor.
    """

    archive: Archive
    heads: int
    gated: bool
    legacy: bool
    two: bool = False

    def put(
        self,
        weights: dict[str, Weight],
        name: str,
        key: str,
        facts: TensorFacts,
        axis: int | None,
        rank: tuple[int, int],
    ) -> None:
        """Add a stored tensor to the whole one that it is a part of. Raises CheckpointError.

        Args:
            key: of the whole one.
            axis: that tensor ranks share.
            rank: its tensor rank, and their number.
        """
        if axis is WHOLE and rank[0]:
            return  # every tensor rank has the same
        shape, pieces = self._pieces(name, key, facts, axis, rank)
        weight = weights.setdefault(key, Weight(shape, facts.dtype))
        if weight.shape != shape:
            raise CheckpointError(
                f"{self.archive.path}: {name} is {shape} in one file and {weight.shape} in another; it is damaged"
            )
        weight.pieces += pieces

    def _pieces(
        self, name: str, key: str, facts: TensorFacts, axis: int | None, rank: tuple[int, int]
    ) -> tuple[tuple[int, ...], list[Piece]]:
        number, size = rank
        rest = (0,) * (len(facts.shape) - 1)
        if self.legacy and key.endswith(("linear_qkv.weight", "linear_qkv.bias")):
            return _head_by_head(facts, number, size, self.heads)
        if not (self.gated and key.endswith(("linear_fc1.weight", "linear_fc1.bias"))):
            return _plain(facts, axis, number, size)
        # megatron-core's whole tensor has all of the gate's rows first, then all of the others
        rows = facts.shape[0] if self.two else facts.shape[0] // 2
        shape = (2 * rows * size, *facts.shape[1:])
        if self.two:
            half = rows * size if "h_to_4h_2" in name else 0
            return shape, [Piece.of(facts, (half + number * rows, *rest))]
        halves = ((0, number * rows), (rows, (size + number) * rows))
        return shape, [Piece.of(facts.rows(start, rows), (offset, *rest)) for start, offset in halves]


def _plain(facts: TensorFacts, axis: int | None, number: int, size: int) -> tuple[tuple[int, ...], list[Piece]]:
    shape, offset = list(facts.shape), [0] * len(facts.shape)
    if axis is not None:
        shape[axis] *= size
        offset[axis] = number * facts.shape[axis]
    return tuple(shape), [Piece.of(facts, tuple(offset))]


def _head_by_head(facts: TensorFacts, number: int, size: int, heads: int) -> tuple[tuple[int, ...], list[Piece]]:
    """[3, heads, width] rows, as Megatron-LM's first versions had them, to megatron-core's [heads, 3, width]."""
    own = max(1, heads // size)
    if facts.shape[0] % (3 * own):
        raise CheckpointError(f"{facts.member.name}: {facts.shape[0]} rows are not those of {own} heads")
    width = facts.shape[0] // (3 * own)
    rest = (0,) * (len(facts.shape) - 1)
    pieces = [
        Piece.of(facts.rows((part * own + head) * width, width), (((number * own + head) * 3 + part) * width, *rest))
        for head in range(own)
        for part in range(3)
    ]
    return (facts.shape[0] * size, *facts.shape[1:]), pieces
