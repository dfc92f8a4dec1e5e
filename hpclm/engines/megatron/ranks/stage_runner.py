"""One rank of a stage on megatron-core: prepare shared data, rendezvous, run the task, write the result."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import torch.distributed as dist

import hpclm
from hpclm.core.layout import StagePaths
from hpclm.core.light_imports import without
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import write_sealed
from hpclm.core.spec import StageSpec
from hpclm.engines.megatron.ranks import cpu_standins
from hpclm.worker.gpu_environment import set_gpu_environment
from hpclm.worker.rank_launch import RankLaunch
from hpclm.worker.ranks.devices import set_arithmetic, take_gpu
from hpclm.worker.ranks.preparation import prepare_on_first_rank
from hpclm.worker.ranks.rendezvous import rendezvous
from hpclm.worker.report import Progress


def run(launch: RankLaunch) -> None:
    """Runs this rank. The process groups are destroyed when it returns."""
    began = time.time()
    spec = from_dict(StageSpec, launch.spec)
    facts = launch.facts
    if facts.world_size != spec.parallel.world_size:
        raise RuntimeError(f"{facts.world_size} ranks were started, but the plan has {spec.parallel.world_size}")
    if spec.device == "gpu":
        set_gpu_environment(launch.attempt, facts.node, divided=max(spec.parallel.tensor, spec.parallel.context) > 1)
    # What megatron-core would load for trackers takes a while, and is not used.
    with without("wandb", "torch.utils.tensorboard"):
        if spec.device == "cpu":
            cpu_standins.install()  # before megatron-core's modules are used
        from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks.rank_context import StageContext
    from hpclm.engines.megatron.ranks.tasks import RUNNERS

    store = rendezvous(launch.attempt.rendezvous, facts)
    if spec.pretraining_length is not None:
        from hpclm.data.ranks.pretraining_data import prepare

        prepare_on_first_rank(store, launch.attempt, facts, lambda: prepare(spec, launch.stage.data))
    device = torch.device("cpu") if spec.device == "cpu" else take_gpu(store, facts)
    set_arithmetic(spec.trainer.precision, deterministic=spec.trainer.deterministic, trains=spec.task != "evaluate")
    groups = process_groups.initialize(store, facts.rank, spec.parallel, device, spec.trainer.seed)
    progress = Progress(launch.stage.progress, launch.stage.metrics, active=groups.is_reporter)
    progress.update(phase="starting")
    result = RUNNERS[spec.task](StageContext(spec, launch.stage, groups, progress, launch.stop))
    _complete(launch.stage, spec, groups, progress, {**result, "seconds_in_all": time.time() - began})


def _complete(stage: StagePaths, spec: StageSpec, groups: Any, progress: Progress, result: dict[str, Any]) -> None:
    """Write the result as the last step, once every rank has finished."""
    progress.update(phase="done", force=True)
    dist.barrier()
    if groups.rank == 0:
        record = {
            "task": spec.task,
            "world_size": groups.world_size,
            "versions": _versions(),
            "backends": to_dict(spec.backends),
            **result,
        }
        write_sealed(stage.result, record)
    dist.barrier()
    dist.destroy_process_group()


def _versions() -> dict[str, str | None]:
    import megatron.core

    return {
        "hpclm": hpclm.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "megatron-core": megatron.core.__version__,
        "cuda": torch.version.cuda,
    }
