"""The plan itself: plain dataclasses that go to JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hpclm.core.engine_spec import EngineSpec
from hpclm.core.findings import Finding
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import to_dict
from hpclm.core.spec import ProgramSpec, ProgramStageSpec, RecoverySpec
from hpclm.planning.memory_estimate import MemoryEstimate
from hpclm.planning.topology import RankPlace, Topology


@dataclass(frozen=True)
class ResourcePlan:
    """What the stage's job requests. `memory_gib` per node (None: all); `cpus_per_device` None: the site's default."""

    nodes: int
    devices_per_node: int
    device: str
    time_limit_min: int
    memory_gib: int | None
    cpus_per_device: int | None
    job_time_limit_min: int | None = None


@dataclass(frozen=True)
class MountPlan:
    """An absolute host path, mounted at `target` in the container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class ContainerPlan:
    """The image (an absolute path if it is a file), its mounts and its environment."""

    image: str
    mounts: tuple[MountPlan, ...] = ()
    workdir: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    runtime: str | None = None
    writable: bool = False
    home: bool | None = None


@dataclass(frozen=True)
class Origin:
    """Where a stage finds the output of another: a stage of this recipe, or an absolute path."""

    stage: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        return f"stage {self.stage}" if self.stage else str(self.path)


@dataclass(frozen=True)
class StagePlan:
    """One job.

    Attributes:
        depends_on: stages whose output it needs.
        parallel: None if the devices cannot be split as requested (see the findings).
        gradient_accumulation_steps: micro-batches of a rank in a step; None where the batch cannot be split.
        total_steps: optimizer steps; None where unknown before all data is read, and for evaluate.
        memory: estimate of the most loaded rank; None where the architecture is not known.
        spec: what the ranks will read, before the run folder is known (`specs.placed`);
            None where a finding prevents it.
    """

    name: str
    task: str
    engine: str
    depends_on: tuple[str, ...]
    resources: ResourcePlan
    container: ContainerPlan | None
    parallel: ParallelSpec | None
    gradient_accumulation_steps: int | None
    total_steps: int | None
    memory: MemoryEstimate | None
    spec: EngineSpec | None
    recovery: RecoverySpec = field(default_factory=RecoverySpec)

    @property
    def program(self) -> ProgramSpec | None:
        """The program of a stage that runs one."""
        return self.spec.program if isinstance(self.spec, ProgramStageSpec) else None

    @property
    def topology(self) -> Topology | None:
        return Topology.of(self.parallel) if self.parallel else None

    @property
    def ranks(self) -> list[RankPlace]:
        """Every rank with node and coordinates; empty where there is no split."""
        topology = self.topology
        return topology.places() if topology else []

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        split = self.parallel
        return {
            "name": self.name,
            "task": self.task,
            "engine": self.engine,
            "depends_on": list(self.depends_on),
            "tensor_parallel": split.tensor if split else None,
            "pipeline_parallel": split.pipeline if split else None,
            "data_parallel": split.data if split else None,
            "context_parallel": split.context if split else None,
            "sequence_parallel": split.sequence_parallel if split else None,
            "world_size": self.resources.nodes * self.resources.devices_per_node,
            "nodes": self.resources.nodes,
            "devices_per_node": self.resources.devices_per_node,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "total_steps": self.total_steps,
            "ranks": [dict(vars(place)) for place in self.ranks],
            "memory_bytes": dataclasses.asdict(self.memory) | {"total": self.memory.total} if self.memory else None,
            "resources": dataclasses.asdict(self.resources),
            "container": dataclasses.asdict(self.container) if self.container else None,
            "recovery": dataclasses.asdict(self.recovery),
            "spec": to_dict(self.spec) if self.spec else None,
        }


@dataclass(frozen=True)
class Plan:
    """A recipe's stages and everything the checks found. `recipe` is the file as the user gave it."""

    name: str
    recipe: str
    stages: tuple[StagePlan, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep the run from being submitted."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. The keys of the first stage's split are repeated at the top level; `stages` has all of them."""
        stages = [stage.to_dict() for stage in self.stages]
        top = (
            "tensor_parallel",
            "pipeline_parallel",
            "data_parallel",
            "world_size",
            "nodes",
            "devices_per_node",
            "gradient_accumulation_steps",
            "ranks",
        )
        return {
            "name": self.name,
            "recipe": self.recipe,
            **{key: stages[0][key] for key in top},
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "stages": stages,
        }
