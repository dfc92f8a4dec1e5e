"""One real Slurm for all cluster tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from launch.dev_cluster import Cluster, ClusterError


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes of eight pretended GPUs. A machine without Slurm fails the tests and says what is missing."""
    try:
        booted = Cluster()
    except ClusterError as error:
        pytest.fail(f"the cluster tests need a real Slurm: {error}")
    before = os.environ.get("SLURM_CONF")
    with booted:
        os.environ.update(booted.environment)
        yield booted
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
