"""What `plan --trace` found, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from hpclm.core.errors import PlanError, RecipeError
from hpclm.core.rank_trace import RankTrace
from hpclm.core.records import to_dict
from hpclm.planning.drawing import size_text
from hpclm.planning.plan import Plan
from hpclm.planning.tracing import WORST, trace, worst

_SMALL = 4096  # a few numbers


def traced(made: Plan, rank: str) -> list[RankTrace]:
    """Trace the plan's stages; `rank` is a number or `worst`. Raises HpclmError."""
    if rank != WORST and not rank.isdecimal():
        raise RecipeError(f"--rank {rank}: must be the number of a rank, or {WORST}")
    return trace(made, None if rank == WORST else int(rank), lambda line: typer.echo(line, err=True))


def trace_lines(found: list[RankTrace], rank: str) -> Iterator[str]:
    """One block for each stage: the rank that holds most, or the one that was asked for."""
    for one in worst(found).values():
        if one.error is not None:
            continue
        others = [other for other in found if other.stage == one.stage and other is not one]
        parts = [item for item in sorted(one.bytes_by_kind.items(), key=lambda item: -item[1]) if item[1] >= _SMALL]
        yield f"\ntrace of stage {one.stage}, rank {one.rank}: {size_text(one.peak_bytes)} at its peak"
        yield "  " + ", ".join(f"{kind} {size_text(size)}" for kind, size in parts)
        yield "  at " + "\n     ".join(one.where)
        if one.estimate_bytes is not None:
            yield f"  the plan's estimate is {size_text(one.estimate_bytes)}"
        if others and rank == WORST:
            rest = ", ".join(f"rank {other.rank} {size_text(other.peak_bytes)}" for other in others)
            yield f"  other pipeline stages: {rest}"
        yield from (f"  assumed: {line}" for line in one.assumed)


def trace_json(found: list[RankTrace]) -> list[dict[str, Any]]:
    return [to_dict(one) for one in found]


def refuse_failed(found: list[RankTrace]) -> None:
    """Raises PlanError if the engine could not run a rank."""
    failed = [one for one in found if one.error is not None]
    if failed:
        lines = (
            f"stage {one.stage}, rank {one.rank}: the engine fails: {one.error}"
            + "".join(f"\n  at {line}" for line in one.where)
            for one in failed
        )
        raise PlanError("\n".join(lines))
