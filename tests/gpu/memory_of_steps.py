"""The most memory that two steps of a stage hold: on a GPU by its allocator, and as the trace counts it.

Both are called in a process of their own, with a file of the spec and one for the bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

from hpclm.core.records import from_dict
from hpclm.core.spec import StageSpec


def traced(spec_file: str, result: str) -> None:
    """As `hpclm plan --trace` counts, with no GPU."""
    from hpclm.engines.megatron.ranks.trace import trace

    Path(result).write_text(str(trace(_spec(spec_file), 0).peak_bytes))


def held(spec_file: str, result: str) -> None:
    """On this process's first GPU; in a rehearsal by the trace's counter over real tensors of the CPU."""
    import torch
    import torch.distributed as dist

    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks import trace
    from hpclm.engines.megatron.ranks.optimizer import Optimizer
    from hpclm.worker.ranks.storage_counter import StorageCounter

    spec = _spec(spec_file)
    place = torch.device("cuda", 0) if spec.device == "gpu" else torch.device("cpu")
    groups = process_groups.initialize(dist.HashStore(), 0, spec.parallel, place, 1)
    counter = StorageCounter()
    norm = Optimizer._gradient_norm
    # the weights are not set, so the norm may be anything
    with patch.object(Optimizer, "_gradient_norm", lambda self, gradients: [norm(self, gradients), 1.0][1]):
        if place.type == "cuda":
            trace._steps(spec, groups, counter)
            most = torch.cuda.max_memory_allocated()
        else:
            with counter:
                trace._steps(spec, groups, counter)
            most = counter.peak.total
    Path(result).write_text(str(most))


def _spec(file: str) -> StageSpec:
    return from_dict(StageSpec, json.loads(Path(file).read_text()))
