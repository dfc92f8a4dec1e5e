"""What a stage of engine hf holds: as `plan --trace` says it, and with real tensors, by the same counter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from hpclm.core.files import read_json, write_json
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.rank_trace import RankTrace
from hpclm.core.records import from_dict, to_dict
from hpclm.engines.hf.ranks import hf_trace
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.hf_loading import empty_model, weights_of
from hpclm.training.ranks.rank_tracing import kernels_of_gpus, resized_told
from hpclm.worker.ranks.storage_counter import StorageCounter
from tests.support.processes import environment
from tests.support.rank_server import ForkedRank
from tests.support.waiting import wait_until


def measured(spec: FineTuneStageSpec, rank: int) -> RankTrace:
    """Of a stage of one rank."""
    import torch
    import torch.distributed as dist

    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = DataGroup(0, 1, 0, torch.device("cpu"))
    folder = Path(spec.base)
    counter = StorageCounter()
    model: Any = empty_model(folder, spec.huggingface)
    hf_trace.tell_kinds(counter, model)
    weights = weights_of(model, folder, group.device)
    run = hf_trace.answers if spec.task == "evaluate" else hf_trace.train
    with resized_told(counter), counter, kernels_of_gpus():
        run(spec, folder, model, weights, group, counter)
    peak = counter.peak
    return RankTrace(spec.stage, rank, 0, peak.total, {kind: size for kind, size in peak.kinds.items() if size})


def write(which: Literal["traced", "measured"], asked: str, answer: str) -> None:
    """In a process of its own: read a spec, and write its RankTrace."""
    spec = from_dict(FineTuneStageSpec, read_json(Path(asked)))
    write_json(Path(answer), to_dict((hf_trace.trace if which == "traced" else measured)(spec, 0)))


def held(which: Literal["traced", "measured"], spec: FineTuneStageSpec, folder: Path) -> RankTrace:
    """The same, from a test."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer, log = folder / "spec.json", folder / f"{which}.json", folder / f"{which}.log"
    write_json(asked, to_dict(spec))
    ran = ForkedRank(
        [which, str(asked), str(answer)], environment(OMP_NUM_THREADS="1"), log, kind="hf", function=f"{__name__}:write"
    )
    wait_until("the process ends", lambda: ran.poll() is not None, limit_s=600)
    assert ran.poll() == 0, log.read_text()[-3000:]
    return from_dict(RankTrace, read_json(answer))
