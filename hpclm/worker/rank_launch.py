"""The input of an engine's runner: this rank, its stage, and its stop flag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.signals import StopFlag


@dataclass(frozen=True)
class RankLaunch:
    """One rank of one attempt at a stage. `spec`: the stage's spec as JSON; the engine knows its class."""

    spec: dict[str, Any]
    stage: StagePaths
    attempt: AttemptPaths
    facts: RankFacts
    stop: StopFlag


# Returns when the stage is complete; raises errors that `worker.report` can classify.
Runner = Callable[[RankLaunch], None]
