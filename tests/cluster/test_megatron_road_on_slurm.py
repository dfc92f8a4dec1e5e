"""The whole road of Hugging Face's post on Megatron-LM over two nodes of the real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.dev_cluster import Cluster
from tests.support.megatron_road import prepare, road

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_the_post_over_two_nodes(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    road(tmp_path, "--site", "slurm", "--nodes", "2", "resources.devices_per_node=2", "parallel.tensor=2")
