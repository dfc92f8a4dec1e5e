"""CUDA graphs without a GPU: what is captured is done at each replay, with the objects that it was captured with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Graph:
    """What `cuda_graph.captured` gives. The result is overwritten in its place, as a graph does."""

    def __init__(self, work: Callable[[], Any], made: Any) -> None:
        self.work, self.made, self.replays = work, made, 0

    def pool(self) -> None:
        return None

    def replay(self) -> None:
        self.replays += 1
        found = self.work()
        pairs = (
            [(found, self.made)]
            if not isinstance(found, dict)
            else zip(found.values(), self.made.values(), strict=True)
        )
        for new, old in pairs:
            old.copy_(new)


def captured(work: Callable[[], Any], pool: Any) -> tuple[Graph, Any]:
    """Runs the work once, which a real capture does not: what it adds to must be set back by the caller."""
    made = work()
    made = {key: one.clone() for key, one in made.items()} if isinstance(made, dict) else made.clone()
    return Graph(work, made), made
