"""Where a rank begins: read the stage's spec, rendezvous with the others, run the task, record how it ended.

Importable without side effects and without torch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.core.files import write_json
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.core.spec import ProgramStageSpec, StageSpec, from_dict
from hpclm.worker.rank_identity import RankFacts, rank_facts
from hpclm.worker.signals import StopFlag

if TYPE_CHECKING:
    from hpclm.engines.megatron.ranks.groups import Groups
    from hpclm.worker.report import Progress


def main(stage_dir: str, attempt: str) -> None:
    """Run this rank of the stage in `stage_dir`; `attempt` counts the submits (their restarts are added).

    Returns when the stage is complete and leaves the process with a code of `worker.report` when it is not.
    """
    stop = StopFlag()
    stop.install()
    facts = rank_facts()
    stage = StagePaths(Path(stage_dir))
    paths = stage.attempt(attempt, facts.restart)
    raw = json.loads(stage.spec.read_text())
    spec = from_dict(ProgramStageSpec, raw) if raw["task"] == "program" else from_dict(StageSpec, raw)
    _prepare_environment(spec)

    from hpclm.engines.command import run
    from hpclm.worker.report import RankRecord
    from hpclm.worker.stall_watch import StallWatch

    record = RankRecord(paths.rank(facts.rank), facts)
    watch = StallWatch(record, paths, facts.rank, spec.recovery.stall_timeout_s)
    watch.start()
    error: BaseException | None = None
    try:
        if isinstance(spec, ProgramStageSpec):
            run.run(spec, stage, paths, facts, stop)
        else:
            _run(spec, stage, paths, facts, stop)
    except BaseException as caught:
        error = caught
        traceback.print_exc()
    stood_still_s = watch.stood_still_s()
    watch.stop()
    code = record.finish(error, stood_still_s)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Other ranks may never answer again, so an orderly teardown of the process groups could hang.
        os._exit(code)
    _end_if_teardown_hangs()


def _prepare_environment(spec: StageSpec | ProgramStageSpec) -> None:
    """What torch and NCCL read when they are loaded; a value the user set stays."""
    if spec.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif spec.parallel.tensor > 1:
        # Megatron's order of communication and compute kernels rests on one hardware queue
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def _run(spec: StageSpec, stage: StagePaths, paths: AttemptPaths, facts: RankFacts, stop: StopFlag) -> None:
    began = time.time()
    if facts.world_size != spec.parallel.world_size:
        raise RuntimeError(f"{facts.world_size} ranks were started where the plan has {spec.parallel.world_size}")
    if spec.device == "cpu":
        from hpclm.engines.megatron.ranks import cpu_standins

        cpu_standins.install()
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks.rank_context import StageContext
    from hpclm.engines.megatron.ranks.tasks import RUNNERS
    from hpclm.worker.ranks.rendezvous import rendezvous
    from hpclm.worker.report import Progress

    store = rendezvous(paths.rendezvous, facts)
    groups = process_groups.initialize(
        store, facts.rank, facts.local_rank, spec.parallel, spec.device, spec.trainer.seed
    )
    progress = Progress(stage.progress, stage.metrics, active=groups.is_reporter)
    progress.update(phase="starting")
    result = RUNNERS[spec.task](StageContext(spec, stage, groups, progress, stop))
    _complete(stage, spec, groups, progress, {**result, "seconds_in_all": time.time() - began})


def _complete(
    stage: StagePaths, spec: StageSpec, groups: Groups, progress: Progress, result: dict[str, object]
) -> None:
    """Write the result, last of all, once every rank is done."""
    import torch.distributed as dist

    progress.update(phase="done", force=True)
    dist.barrier()
    if groups.rank == 0:
        record = {"task": spec.task, "world_size": groups.world_size, "versions": _versions(), **result}
        write_json(stage.result, record)
    dist.barrier()
    dist.destroy_process_group()


def _versions() -> dict[str, str | None]:
    import megatron.core
    import torch

    import hpclm

    return {
        "hpclm": hpclm.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "megatron-core": megatron.core.__version__,
        "cuda": torch.version.cuda,
    }


def _end_if_teardown_hangs(seconds: float = 60.0) -> None:
    """Leave with success if the interpreter does not end by itself: the stage's result is already written."""
    timer = threading.Timer(seconds, os._exit, args=(0,))
    timer.daemon = True
    timer.start()
