"""Runs of the fake worker: a real submit of a small plan, with the engine in the payload replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hpclm.core.files import write_json
from hpclm.core.layout import RunPaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.payload import stage_payload
from hpclm.core.site import Site
from hpclm.core.spec import (
    BatchSpec,
    CheckpointSpec,
    ModelSpec,
    OptimSpec,
    PromptData,
    StageSpec,
    TokenizerSpec,
    TrainerSpec,
)
from hpclm.core.sweep_layout import RunsFolder
from hpclm.planning.plan import ContainerPlan, Plan, ResourcePlan, StagePlan
from hpclm.runs import submit as submitting
from hpclm.runs import sweep as sweeping
from hpclm.runs.job_building import JobBuilder, import_of
from hpclm.runs.record import Run
from hpclm.runs.status import RunStatus, status_of
from hpclm.schedulers.interface import scheduler_of
from tests.support.waiting import wait_until

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


@dataclass(frozen=True)
class Stage:
    """A stage of a test's run."""

    name: str
    task: str = "pretrain"
    depends_on: tuple[str, ...] = ()
    nodes: int = 1
    devices_per_node: int = 2
    device: str = "cpu"
    time_limit_min: int = 5
    memory_gib: int | None = 1
    container: ContainerPlan | None = None
    behaviour: dict[str, Any] = field(default_factory=dict)


CHAIN = (
    Stage("pretrain"),
    Stage("ptune", "p-tuning", ("pretrain",)),
    Stage("evaluate", "evaluate", ("pretrain", "ptune")),
)


def prepared(folder: Path, stages: tuple[Stage, ...], site: Site, *, name: str = "tiny") -> submitting.Prepared:
    """What `prepare` would make of a recipe with these stages."""
    plan = Plan(name, "tiny.yaml", tuple(_plan(stage) for stage in stages), ())
    container = any(stage.container for stage in stages)
    capabilities = scheduler_of(site).capabilities(site, gpu=False, container=container)
    paths, runs = RunPaths(folder / submitting.run_id(None, name)), RunsFolder(folder)
    jobs, problems = JobBuilder(capabilities, paths, paths.payload, name, runs).jobs(plan.stages)
    recipe = folder.parent / "tiny.yaml"
    loaded: Any = SimpleNamespace(text="version: 1\n", resolved=lambda: {"version": 1})
    specs = tuple(spec_of(stage, paths) for stage in stages)
    return submitting.Prepared(
        request=submitting.Request(recipe),
        loaded=loaded,
        plan=plan,
        site=capabilities.site,
        paths=paths,
        payload=paths.payload,
        specs=specs,
        jobs=tuple(jobs),
        problems=(*scheduler_of(site).check_fit(capabilities, jobs), *problems),
        imports=tuple(one for stage in plan.stages if (one := import_of(stage, capabilities.site, runs)) is not None),
    )


def use_fake_worker(monkeypatch: Any, stages: tuple[Stage, ...]) -> None:
    """From now on payloads hold the fake worker, and runs its behaviour."""

    def stage_fake(target: Path, shared: Path | None = None) -> None:
        stage_payload(target, shared)
        worker = target / "hpclm" / "worker"
        shutil.rmtree(worker)
        worker.mkdir()
        for file in ("entry.py", "__main__.py"):
            shutil.copyfile(FAKE_WORKER, worker / file)
        (worker / "__init__.py").touch()
        write_json(target.parent / "behaviour.json", {stage.name: stage.behaviour for stage in stages})

    for module in (submitting, sweeping):
        monkeypatch.setattr(module, "stage_payload", stage_fake)


def until_over(run: Run) -> RunStatus:
    """The status once the run is over. Fails the test when it is not in time."""
    return _until(f"the end of {run.record.run}", run, lambda status: status.over)


def until(run: Run, stage: str, state: str) -> RunStatus:
    """The status once a stage is in a state (and, when running, has made a step)."""

    def reached(status: RunStatus) -> bool:
        found = next(one for one in status.stages if one.name == stage)
        return found.state == state and (state != "running" or found.step is not None)

    return _until(f"stage {stage} to be {state}", run, reached)


def _until(what: str, run: Run, reached: Callable[[RunStatus], bool]) -> RunStatus:
    seen: list[RunStatus] = []

    def look() -> bool:
        seen[:] = status_of([run])
        return reached(seen[0])

    wait_until(what, look, seen=lambda: seen[0], pause_s=0.1)
    return seen[0]


def words(status: RunStatus) -> dict[str, str]:
    return {stage.name: stage.state for stage in status.stages}


def _plan(stage: Stage) -> StagePlan:
    resources = ResourcePlan(
        stage.nodes, stage.devices_per_node, stage.device, stage.time_limit_min, stage.memory_gib, None
    )
    return StagePlan(
        name=stage.name,
        task=stage.task,
        engine="megatron",
        depends_on=stage.depends_on,
        resources=resources,
        container=stage.container,
        parallel=_split(stage),
        gradient_accumulation_steps=1,
        total_steps=1,
        memory=None,
        spec=None,
    )


def _split(stage: Stage) -> ParallelSpec:
    world = stage.nodes * stage.devices_per_node
    return ParallelSpec(1, 1, world, world, stage.nodes, stage.devices_per_node)


def spec_of(stage: Stage, paths: RunPaths) -> StageSpec:
    task: Any = stage.task
    device: Any = stage.device
    return StageSpec(
        run=paths.name,
        stage=stage.name,
        stage_dir=str(paths.stage(stage.name).root),
        task=task,
        device=device,
        model=ModelSpec(1, 8, 32, 2, 2, 4, 16, 64, 64),
        tokenizer=TokenizerSpec("base"),
        parallel=_split(stage),
        batch=BatchSpec(2, 1, 1),
        trainer=TrainerSpec("fp32", max_steps=1),
        optim=OptimSpec(1e-3),
        checkpoint=CheckpointSpec(),
        data=PromptData() if task == "evaluate" else None,
    )
