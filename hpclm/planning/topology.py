"""Which rank does what, on which node: degrees, rank ↔ (pp, dp, tp) in Megatron's order, ranks on nodes."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.parallel_spec import ParallelSpec, RankOrder

_AXES = {"tp": "tensor", "cp": "context", "dp": "data", "pp": "pipeline"}


@dataclass(frozen=True)
class RankPlace:
    """One rank: its node, its number there, and its coordinates."""

    rank: int
    node: int
    local_rank: int
    pipeline: int
    data: int
    tensor: int
    context: int = 0


@dataclass(frozen=True)
class Topology:
    """A split of nodes · devices_per_node ranks into tensor · context · data · pipeline.

    In the usual order rank = tp + TP·(cp + CP·(dp + DP·pp)) (megatron/core/parallel_state.py, RankGenerator, without
    experts). Neighbouring ranks share a node, so the tensor group, which communicates most, does.
    """

    tensor: int
    pipeline: int
    nodes: int
    devices_per_node: int
    context: int = 1
    order: RankOrder = ParallelSpec.order

    @classmethod
    def of(cls, split: ParallelSpec) -> Topology:
        return cls(split.tensor, split.pipeline, split.nodes, split.devices_per_node, split.context, split.order)

    def __post_init__(self) -> None:
        if self.world_size % self.model_size:
            raise ValueError(f"{self.world_size} ranks are not a multiple of {self.model_size}")

    @property
    def world_size(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def data(self) -> int:
        """Data-parallel degree: the ranks divided by those of one replica."""
        return self.world_size // self.model_size

    @property
    def model_size(self) -> int:
        """Ranks of one replica of the model."""
        return self.tensor * self.context * self.pipeline

    @property
    def axes(self) -> list[tuple[str, int]]:
        """Name and degree of each parallel axis, innermost first."""
        return [(_AXES[name], getattr(self, _AXES[name])) for name in self.order.split("-") if name in _AXES]

    def rank(self, **coordinates: int) -> int:
        """The rank at these coordinates, one for each axis."""
        rank, stride = 0, 1
        for name, degree in self.axes:
            rank, stride = rank + coordinates[name] * stride, stride * degree
        return rank

    def place(self, rank: int) -> RankPlace:
        """Coordinates and node of a rank."""
        coordinates, rest = {}, rank
        for name, degree in self.axes:
            rest, coordinates[name] = divmod(rest, degree)
        node, local_rank = divmod(rank, self.devices_per_node)
        return RankPlace(rank, node, local_rank, **coordinates)

    def places(self) -> list[RankPlace]:
        """Every rank, in order."""
        return [self.place(rank) for rank in range(self.world_size)]

    def tensor_groups_across_nodes(self) -> int:
        """How many tensor groups have ranks on more than one node."""
        groups = range(0, self.world_size, self.tensor)
        return sum(
            first // self.devices_per_node != (first + self.tensor - 1) // self.devices_per_node for first in groups
        )
