"""A stage of engine hf as one rank sees it."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import StagePaths
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.worker.report import Progress
from hpclm.worker.signals import StopFlag


@dataclass(frozen=True)
class HfStage:
    """The stage, this rank's place in it, and whom it tells how it goes."""

    spec: FineTuneStageSpec
    paths: StagePaths
    group: DataGroup
    progress: Progress
    stop: StopFlag
