"""Memory of one rank, by use."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the most loaded rank; `parameters` and `trainable_parameters` count the whole model."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    parameters: int
    trainable_parameters: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations
