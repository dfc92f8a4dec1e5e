"""The context that every task receives."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.layout import StagePaths
from hpclm.core.spec import StageSpec
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.worker.report import Progress
from hpclm.worker.signals import StopFlag


@dataclass(frozen=True)
class StageContext:
    """A stage as seen by one rank."""

    spec: StageSpec
    paths: StagePaths
    groups: Groups
    progress: Progress
    stop: StopFlag
