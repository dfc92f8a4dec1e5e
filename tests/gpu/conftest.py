"""Tests that need a GPU: `make gpu`. With HPCLM_GPU_TESTS=rehearse they run on the CPU, to try the tests themselves.

Ranks are forked from a process that has loaded torch and megatron-core: loading them takes ten times as long as most of
what is tested here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.files import write_json
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import StagePaths
from hpclm.core.records import to_dict
from hpclm.core.spec import StageSpec
from tests.support.engine_harness import write_data
from tests.support.processes import environment
from tests.support.rank_server import RANK, ForkedRank, Kind
from tests.support.waiting import wait_until

# NCCL between ranks that share a GPU
ALONE_ON_A_HOST = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1", "NCCL_MAX_NCHANNELS": "2"}
REHEARSES = os.environ.get("HPCLM_GPU_TESTS") == "rehearse"


@pytest.fixture(scope="session")
def device() -> str:
    """`gpu`, or `cpu` in a rehearsal; a machine without a GPU skips."""
    return "cpu" if REHEARSES else "gpu"


@pytest.fixture(scope="session")
def gpus(device: str) -> int:
    """How many there are; as many ranks can run here."""
    import torch

    return 2 if REHEARSES else torch.cuda.device_count()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_data(folder)
    return folder


def forked(
    arguments: list[str], log: Path, device: str, *, function: str = RANK, hf: bool = False, **variables: str
) -> ForkedRank:
    """A process that has torch and megatron-core loaded."""
    gpu = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if device == "gpu" else {"CUDA_VISIBLE_DEVICES": ""}
    # several tests run at once, and a process takes all cores otherwise
    env = environment(PYTHONWARNINGS="ignore", OMP_NUM_THREADS="2", **gpu, **variables)
    kind: Kind = "gpu" if device == "gpu" else "hf" if hf else "megatron"
    return ForkedRank(arguments, env, log, kind=kind, function=function)


def ended(process: ForkedRank) -> int:
    """Its exit code, once it has one."""
    wait_until("the process to end", lambda: process.poll() is not None)
    assert process.returncode is not None
    return process.returncode


Run = Callable[..., StagePaths]


@pytest.fixture
def run() -> Run:
    """Runs a stage, see `ranks_of`."""
    return ranks_of


def ranks_of(
    spec: StageSpec | FineTuneStageSpec,
    device: Any,
    *,
    attempt: int = 1,
    code: int = 0,
    gpus: int | None = None,
    function: str = RANK,
    **variables: str,
) -> StagePaths:
    """Run a stage's ranks as a job does, each a process of its own; `code` is what rank 0 must end with.

    Args:
        gpus: how many there are; where the stage has more ranks, they share one.
        function: another one than a rank's, see `ForkedRank`.
    """
    paths = StagePaths(Path(spec.stage_dir))
    write_json(paths.spec, to_dict(replace(spec, device=device)))
    logs = paths.attempt(attempt).logs
    logs.mkdir(parents=True, exist_ok=True)
    count = spec.parallel.world_size
    if device == "gpu" and gpus is not None and count > gpus:
        function = "tests.gpu.shared_gpu:main"
        variables = {"CUDA_VISIBLE_DEVICES": "0", **ALONE_ON_A_HOST, **variables}
    started = []
    for rank in range(count):
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "NODE_RANK": 0}
        given = {f"HPCLM_{name}": str(value) for name, value in place.items()}
        words = [str(paths.root), f"{attempt:03d}"]
        hf = spec.engine == "hf"
        log = logs / f"{rank:05d}.log"
        started.append(forked(words, log, device, function=function, hf=hf, **given, **variables))
    try:
        for one in started:
            ended(one)
    finally:
        for one in started:
            one.kill()
    assert started[0].returncode == code, (logs / "00000.log").read_text()[-4000:]
    return paths
