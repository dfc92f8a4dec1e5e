"""A world of one rank and a small model in it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))

from hpclm.worker.engine import cpu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cpu.install()
    import torch.distributed as dist

    import hpclm.worker.tasks  # noqa: F401
    from hpclm.plan.spec import ParallelSpec
    from hpclm.worker.engine import groups as process_groups


@pytest.fixture(scope="session")
def alone() -> Iterator[process_groups.Groups]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield process_groups.initialize(dist.HashStore(), 0, 0, ParallelSpec(1, 1, 1, 1, 1, 1), "cpu", 1)
        dist.destroy_process_group()
