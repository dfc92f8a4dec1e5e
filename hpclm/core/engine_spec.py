"""What the specs of all engines have in common: for who places, checks and starts a stage whatever its engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import NodeNeeds, RecoverySpec, TrackerOptions


class EngineSpec(Protocol):
    """What every engine's spec has, so that a run can be placed, checked and started whatever the engine.

    It is a frozen dataclass of plain values; `runner` names what reads it on the ranks.
    """

    @property
    def run(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def stage_dir(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def device(self) -> Literal["cpu", "gpu"]: ...
    @property
    def parallel(self) -> ParallelSpec: ...
    @property
    def recovery(self) -> RecoverySpec: ...
    @property
    def needs(self) -> NodeNeeds: ...
    @property
    def runner(self) -> str: ...


@dataclass(frozen=True)
class RankStart:
    """What a rank reads of any engine's spec before it calls that engine's runner."""

    task: str
    device: Literal["cpu", "gpu"]
    parallel: ParallelSpec
    recovery: RecoverySpec
    runner: str
    engine: str = ""
    tracking: TrackerOptions = field(default_factory=dict)
