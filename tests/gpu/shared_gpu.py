"""Ranks that share one GPU, so that one GPU is enough to try NCCL's collectives.

NCCL refuses two ranks of one host on one GPU; with a host's name of its own (NCCL_HOSTID) each rank is on another host,
and they talk over sockets. It is slow: kernels that wait for each other take turns.
"""

from __future__ import annotations

import os
from unittest.mock import patch


def main(stage_dir: str, attempt: str) -> None:
    """A rank, as `hpclm.worker.entry`, without the question whether it has the GPU to itself."""
    from hpclm.worker import entry
    from hpclm.worker.ranks import devices

    os.environ["NCCL_HOSTID"] = f"rank-{os.environ['HPCLM_RANK']}"
    with patch.object(devices, "_alone_on", lambda *given: None):
        entry.main(stage_dir, attempt)
