"""A world of one rank in this process, for tests of the engine's parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from hpclm.worker.engine import cpu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core says that Apex and Transformer Engine are absent
    cpu.install()
    import torch.distributed as dist

    import hpclm.worker.tasks  # noqa: F401 - all that warns when imported, imported here
    from hpclm.plan.spec import ParallelSpec
    from hpclm.worker.engine import groups as process_groups


@pytest.fixture(scope="session")
def alone() -> Iterator[process_groups.Groups]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield process_groups.initialize(dist.HashStore(), 0, 0, ParallelSpec(1, 1, 1, 1, 1, 1), "cpu", 1)
        dist.destroy_process_group()
