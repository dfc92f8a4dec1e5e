"""What `plan --trace` found of one rank: written by the tracer of an engine, read by whoever asked. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankTrace:
    """What one rank of a stage holds where it holds most.

    Attributes:
        bytes_by_kind: weights, gradients, optimizer, activations, logits, communication, key/value cache.
        where: the innermost lines of code there, innermost first; of an error, where it was.
        assumed: about data that were not read.
        seconds: that the trace took.
        estimate_bytes: the plan's own estimate, of the most loaded rank; the tracer does not know it.
        error: why the engine could not run it.
    """

    stage: str
    rank: int
    pipeline_rank: int = 0
    peak_bytes: int = 0
    bytes_by_kind: dict[str, int] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    estimate_bytes: int | None = None
    error: str | None = None
