"""One rank of a stage of engine hf: prepare rows, rendezvous, run the task, write the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib import metadata

import torch
import torch.distributed as dist

import hpclm
from hpclm.core import heartbeat
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.records import from_dict
from hpclm.core.sealed import write_sealed
from hpclm.engines.hf.ranks import extension_locks, hf_groups
from hpclm.engines.hf.ranks.hf_stage import HfStage
from hpclm.worker.gpu_environment import set_gpu_environment
from hpclm.worker.rank_launch import RankLaunch
from hpclm.worker.ranks.devices import set_arithmetic, take_gpu
from hpclm.worker.ranks.preparation import prepare_on_first_rank
from hpclm.worker.ranks.rendezvous import rendezvous
from hpclm.worker.report import Progress, StoppedError

# A rank never asks the hub: what it needs was fetched on the login node.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "true", "DS_ACCELERATOR_LOG": "error"}  # fmt: skip
_PACKAGES = ("transformers", "peft", "accelerate", "deepspeed", "tokenizers", "safetensors")


def run(launch: RankLaunch) -> None:
    """Runs this rank. The process group is destroyed when it returns."""
    began = time.time()
    spec = from_dict(FineTuneStageSpec, launch.spec)
    facts = launch.facts
    if facts.world_size != spec.parallel.world_size:
        raise RuntimeError(f"{facts.world_size} ranks were started, but the plan has {spec.parallel.world_size}")
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    if spec.task == "prepare-rows":
        _prepare_rows(spec, launch, began)
        return
    if spec.device == "gpu":
        set_gpu_environment(launch.attempt, facts.node, divided=False)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from hpclm.engines.hf.ranks.base_models import model_folder
    from hpclm.engines.hf.ranks.prepared_instructions import prepare_rows

    store = rendezvous(launch.attempt.rendezvous, facts)
    if spec.task == "fine-tune":
        folder = model_folder(spec.base)

        def prepare() -> None:
            prepare_rows(spec, launch.stage, folder)

        prepare_on_first_rank(store, launch.attempt, facts, prepare)
    if spec.task == "fine-tune" and spec.sharding.strategy.startswith("zero") and facts.local_rank == 0:
        extension_locks.remove_stale(extension_locks.build_folder())
    device = torch.device("cpu") if spec.device == "cpu" else take_gpu(store, facts)
    set_arithmetic(spec.trainer.precision, deterministic=spec.trainer.deterministic, trains=spec.task == "fine-tune")
    group = hf_groups.join(store, facts, device)
    progress = Progress(launch.stage.progress, launch.stage.metrics, active=facts.rank == 0)
    progress.update(phase="starting")
    result = _task(spec.task)(HfStage(spec, launch.stage, group, progress, launch.stop))
    progress.update(phase="done", force=True)
    dist.barrier()
    if facts.rank == 0:
        head = {"task": spec.task, "world_size": facts.world_size, "versions": _versions()}
        write_sealed(launch.stage.result, {**head, **result, "seconds_in_all": time.time() - began})
    dist.barrier()
    dist.destroy_process_group()


def _prepare_rows(spec: FineTuneStageSpec, launch: RankLaunch, began: float) -> None:
    """The one process of a stage that tokenises for others."""
    from hpclm.engines.hf.ranks.base_models import model_folder
    from hpclm.engines.hf.ranks.prepared_instructions import prepare_rows

    progress = Progress(launch.stage.progress, launch.stage.metrics, active=True)
    done = 0

    def between() -> None:
        nonlocal done
        heartbeat.beat()
        if launch.stop.requested:
            raise StoppedError("stop requested; the next job tokenises the rows again")
        progress.update(phase="tokenizing", step=done)
        done += 1

    counts = prepare_rows(spec, launch.stage, model_folder(spec.base), between)
    progress.update(phase="done", force=True)
    result = {f"{role}_rows": vars(one) for role, one in counts.items()}
    head = {"task": spec.task, "world_size": 1, "versions": _versions()}
    write_sealed(launch.stage.result, {**head, **result, "seconds_in_all": time.time() - began})


def _task(name: str) -> Callable[[HfStage], dict[str, object]]:
    if name == "evaluate":
        from hpclm.engines.hf.ranks.evaluation import run as evaluate

        return evaluate
    from hpclm.engines.hf.ranks.fine_tuning import run as fine_tune

    return fine_tune


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "hpclm": hpclm.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
