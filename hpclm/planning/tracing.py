"""Stages of a plan run without devices, memory or other ranks: the engine's own code on tensors without bytes.

An engine whose `tracer` names a module can be traced: `python -m MODULE` reads `{"spec": …, "rank": n}` on standard
input and writes a `RankTrace` on standard output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import hpclm
from hpclm.core.errors import HpclmError
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.rank_trace import RankTrace
from hpclm.core.records import from_dict, to_dict
from hpclm.planning.engine_protocol import engine_named
from hpclm.planning.plan import Plan, StagePlan
from hpclm.planning.task import task_named
from hpclm.planning.topology import Topology

WORST = "worst"
_AT_ONCE = 4


def trace(plan: Plan, rank: int | None, log: Callable[[str], None] = lambda line: None) -> list[RankTrace]:
    """Trace every stage that can be: one rank, or with None a rank of each pipeline stage, of which one is the worst.

    Raises HpclmError where no stage can be traced, the rank does not exist, or the engine's packages are not here.
    """
    stages = [stage for stage in plan.stages if _tracer(stage) is not None]
    if not stages:
        raise HpclmError("--trace: no stage of this recipe runs on an engine that can be traced (megatron, hf)")
    for stage in stages:
        _refuse_missing(stage)
    wanted: list[tuple[StagePlan, int]] = []
    for stage in stages:
        if stage.spec is None:
            log(f"stage {stage.name} is not traced: its errors come first")
            continue
        for one in _ranks(stage.name, stage.spec.parallel, rank):
            log(f"tracing stage {stage.name}, rank {one} of {stage.spec.parallel.world_size}")
            wanted.append((stage, one))
    # each is a process of its own, busy with one core for seconds
    with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(os.sched_getaffinity(0))))) as pool:
        return list(pool.map(lambda one: _traced(*one), wanted))


def worst(traces: list[RankTrace]) -> dict[str, RankTrace]:
    """The rank that holds most, by stage."""
    found: dict[str, RankTrace] = {}
    for one in traces:
        if one.stage not in found or one.peak_bytes > found[one.stage].peak_bytes:
            found[one.stage] = one
    return found


def _tracer(stage: StagePlan) -> str | None:
    if not task_named(stage.task).runs_model:
        return None
    found: str | None = getattr(engine_named(stage.engine), "tracer", None)
    return found


def _refuse_missing(stage: StagePlan) -> None:
    needed = stage.spec.needs.packages if stage.spec is not None else engine_named(stage.engine).packages
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        extras = "engine" if stage.engine == "megatron" else stage.engine
        raise HpclmError(
            f"--trace runs the code of engine {stage.engine}, which needs {', '.join(missing)} in {sys.executable}; "
            f"install hpclm[{extras}] there (no GPU is needed), or run this command in the image"
        )


def _ranks(stage: str, parallel: ParallelSpec, rank: int | None) -> Iterator[int]:
    """Tensor, context and data parallel ranks of a pipeline stage hold the same, so one of them is enough."""
    if rank is None:
        topology = Topology.of(parallel)
        yield from (topology.rank(tensor=0, context=0, data=0, pipeline=one) for one in range(parallel.pipeline))
    elif rank < parallel.world_size:
        yield rank
    else:
        raise HpclmError(f"--rank {rank}: stage {stage} has ranks 0 to {parallel.world_size - 1}")


def _traced(stage: StagePlan, rank: int) -> RankTrace:
    assert stage.spec is not None
    asked = json.dumps({"spec": to_dict(stage.spec), "rank": rank})
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(Path(hpclm.__file__).parents[1]), *([inherited] if inherited else [])])
    done = subprocess.run(
        [sys.executable, "-m", str(_tracer(stage))],
        input=asked,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    try:
        found = from_dict(RankTrace, json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return RankTrace(stage.name, rank, error=last)
    return replace(found, estimate_bytes=None if stage.memory is None else stage.memory.total)
