"""A package from outside, as a site or a company would keep one: one of everything that hpclm can be extended by.

The test copies it into a folder with the metadata of an installed package and puts that on the path; nothing of hpclm
is changed. In a run it is a part of the payload, so its ranks need no installation either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpclm.containers.launch import ContainerRequest, LaunchSpec
from hpclm.containers.runtime import Runtime
from hpclm.core.files import read_lines, write_json, write_text
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import NodeNeeds, RecoverySpec
from hpclm.metrics.metric import Metric, References
from hpclm.schedulers.local.scheduler import Local
from hpclm.tracking.curve import Curve, numbers
from hpclm.worker.rank_launch import RankLaunch

if TYPE_CHECKING:
    from hpclm.planning.base_model import BaseModel
    from hpclm.planning.engine_protocol import Engine, StageRequest
    from hpclm.planning.plan import StagePlan
    from hpclm.planning.task import Task
    from hpclm.recipe.importers import Importer
    from hpclm.schedulers.jobs import StageJob


# A metric: how much of an answer is in capital letters.
def _capitals(predictions: Sequence[str], references: References) -> float:
    texts = [text for text in predictions if text]
    return sum(sum(one.isupper() for one in text) / len(text) for text in texts) / len(references)


CAPITALS = Metric("capitals", _capitals, "the share of capital letters", always=True)


# A container runtime: its images are names, and it enters them by setting a variable.
def _render(request: ContainerRequest) -> LaunchSpec:
    return LaunchSpec(prefix=("env", f"ACME_BOX={request.image}"), environment=dict(request.environment))


BOX = Runtime("acme-box", _render, is_here=lambda probe: False, rank=99)


# A scheduler: this machine again, but it counts what it starts.
class Acme(Local):
    name = "acme"

    def notes(self, jobs: Sequence[StageJob]) -> list[str]:
        return [f"acme starts {len(jobs)} stage(s)"]


SCHEDULER = Acme()


# An engine with a spec, a section and a runner of its own.
@dataclass(frozen=True)
class ShoutSpec:
    run: str
    stage: str
    stage_dir: str
    task: str
    device: Literal["cpu", "gpu"]
    parallel: ParallelSpec
    rows: list[str]
    suffix: str
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    needs: NodeNeeds = field(default_factory=NodeNeeds)
    runner: str = "acme_plugin:run"


def run(launch: RankLaunch) -> None:
    """Each rank waits for no other: rank 0 answers every row in capital letters and writes the result."""
    import os

    from hpclm.core.records import from_dict
    from hpclm.metrics import scores

    spec = from_dict(ShoutSpec, launch.spec)
    if launch.facts.rank:
        return
    rows = [row for path in spec.rows for row in read_lines(Path(path))]
    made = [
        {
            "index": index,
            "taskname": row["taskname"],
            "prompt": row["text"],
            "prediction": row["text"].upper() + spec.suffix,
            "answer": row.get("answer"),
        }
        for index, row in enumerate(rows)
    ]
    write_text(launch.stage.prediction(0), "".join(json.dumps(row) + "\n" for row in made))
    result = {"examples": len(made), "scores": scores(made), "box": os.environ.get("ACME_BOX")}
    write_json(launch.stage.result, {"task": spec.task, **result})


class Shouter:
    name = "shouter"
    tasks = ("shout",)
    packages: tuple[str, ...] = ()

    @property
    def own_sections(self) -> Mapping[str, Any]:
        from pydantic import Field

        from hpclm.recipe.schema.base import Section

        class Shouting(Section):
            """How loud."""

            suffix: str = Field(default="!", description="put behind every answer")

        return {"shouting": (Shouting, "how loud the shouter is")}

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        from hpclm.planning import lowering, parallel_rules
        from hpclm.planning.base_model import BaseModel
        from hpclm.planning.plan import StagePlan

        stage = request.stage
        topology = parallel_rules.split_devices(stage)
        parallel = lowering.parallel_spec(topology, stage.recipe.parallel) if topology else None
        data = lowering.data(stage, None)
        spec = None
        if parallel is not None and data is not None:
            written = getattr(stage.recipe, "shouting", None)
            suffix = written.suffix if written else "!"
            name, device = stage.recipe.name, lowering.device(stage)
            spec = ShoutSpec("", name, "", stage.recipe.task, device, parallel, list(data.test), suffix)
        plan = StagePlan(
            name=stage.recipe.name,
            task=stage.recipe.task,
            engine=self.name,
            depends_on=(),
            resources=lowering.resources(stage),
            container=lowering.container(stage),
            parallel=parallel,
            gradient_accumulation_steps=None,
            total_steps=None,
            memory=None,
            spec=spec,
        )
        return plan, BaseModel()


ENGINE: Engine = Shouter()


# A tracker: a file with a line for each number.
class _Ledger:
    def __init__(self, folder: Path, curve: Curve) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "ledger.txt"
        self.file.write_text(f"{curve.name} for {curve.options['reader']}\n")
        self.note = f"cat {self.file}"

    def add(self, row: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            file.writelines(f"{row['step']} {name} {value}\n" for name, value in numbers(row))

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Ledger:
    name = "ledger"
    package = "acme-plugin"

    def open(self, folder: Path, curve: Curve) -> _Ledger:
        return _Ledger(folder, curve)


TRACKER = Ledger()


# A task: rows are answered in capital letters.
def _task() -> Task:
    from hpclm.planning.task import COMMON_SECTIONS, Task

    return Task(
        name="shout",
        sections=COMMON_SECTIONS | {"data"},
        answers=True,
        roles=("test",),
        compared_by="capitals",
    )


# An importer: a file with `acme_rows` is a recipe of one such stage.
def _importer() -> Importer:
    from hpclm.recipe.importers import Imported, Importer, KeyFate, KeyNote
    from hpclm.recipe.tree import Node

    def read(root: Node, folder: Path) -> Imported:
        rows = root.get("acme_rows")
        assert rows is not None

        def node(value: Any) -> Node:
            if isinstance(value, dict):
                return Node({key: node(item) for key, item in value.items()}, rows.place)
            return Node([node(item) for item in value] if isinstance(value, list) else value, rows.place)

        recipe = {
            "version": 1,
            "name": "imported",
            "task": "shout",
            "engine": "shouter",
            "resources": {"device": "cpu", "devices_per_node": 2},
            "container": {"image": "acme/box:1"},
            "data": {"test": [rows.value]},
            "shouting": {"suffix": "?!"},
        }
        return Imported(node(recipe), [KeyNote("acme_rows", rows.place.origin, KeyFate.TAKEN, "data.test")])

    return Importer("Acme", lambda root: root.get("acme_rows") is not None, lambda root, path: root, read)


def __getattr__(name: str) -> Any:
    # what needs hpclm's login side is made when it is asked for: the ranks import this module, too
    if name == "TASK":
        return _task()
    if name == "IMPORTER":
        return _importer()
    raise AttributeError(name)


NOTHING = "what no registry takes"
