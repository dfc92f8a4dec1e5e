"""Stages of a plan run without devices, memory or other ranks: the engine's own code on tensors without bytes.

An engine whose `tracer` names a module can be traced: `python -m MODULE` is asked for ranks on standard input, and
answers with a `RankTrace` for each of them (`training.ranks.tracer_program`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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
    found: dict[int, RankTrace] = {}
    for tracer in dict.fromkeys(_tracer(stage) for stage, _ in wanted):
        places = [place for place, (stage, _) in enumerate(wanted) if _tracer(stage) == tracer]
        answers = _traced(str(tracer), [wanted[place] for place in places])
        found.update((places[place], one) for place, one in answers)
    return [found[place] for place in range(len(wanted))]


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


def _traced(tracer: str, wanted: list[tuple[StagePlan, int]]) -> Iterator[tuple[int, RankTrace]]:
    """Each of these stages and ranks by its place, as it is done. All are of one engine."""
    asked = [{"spec": to_dict(stage.spec), "rank": rank} for stage, rank in wanted]
    # each keeps one core busy for seconds
    request = json.dumps({"asked": asked, "at_once": max(1, min(_AT_ONCE, len(os.sched_getaffinity(0))))})
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(Path(hpclm.__file__).parents[1]), *([inherited] if inherited else [])])
    answered = set()
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            [sys.executable, "-m", tracer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                program.stdin.write(request)
                program.stdin.close()
            for line in program.stdout:
                try:
                    place, one = json.loads(line)
                except (ValueError, TypeError):
                    continue  # printed by a library at its import, or cut off; whoever is not answered is told below
                answered.add(place)
                estimate = wanted[place][0].memory
                yield place, replace(from_dict(RankTrace, one), estimate_bytes=estimate.total if estimate else None)
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines() or [f"exit code {program.returncode}"]
    for place, (stage, rank) in enumerate(wanted):
        if place not in answered:
            yield place, RankTrace(stage.name, rank, error=words[-1])
