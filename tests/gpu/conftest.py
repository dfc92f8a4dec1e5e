"""Tests that need a GPU: `make gpu`. With HPCLM_GPU_TESTS=rehearse they run on the CPU, to try the tests themselves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.files import write_json
from hpclm.core.layout import StagePaths
from hpclm.core.records import to_dict
from hpclm.core.spec import StageSpec
from tests.support.engine_harness import write_data
from tests.support.processes import environment, python, start

REHEARSES = os.environ.get("HPCLM_GPU_TESTS") == "rehearse"


@pytest.fixture(scope="session")
def device() -> str:
    """`gpu`, or `cpu` in a rehearsal; a machine without a GPU skips."""
    if REHEARSES:
        return "cpu"
    if python("-c", "import sys, torch; sys.exit(not torch.cuda.is_available())").returncode:
        pytest.skip("torch sees no GPU")
    return "gpu"


@pytest.fixture(scope="session")
def gpus(device: str) -> int:
    """How many there are; as many ranks can run here."""
    if REHEARSES:
        return 2
    return int(python("-c", "import torch; print(torch.cuda.device_count())").stdout)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_data(folder)
    return folder


Run = Callable[..., StagePaths]


@pytest.fixture
def run() -> Run:
    """Run a stage's ranks as a job does, each a process of its own; `code` is what rank 0 must end with."""

    def ranks(spec: StageSpec, device: Any, *, attempt: int = 1, code: int = 0, **variables: str) -> StagePaths:
        paths = StagePaths(Path(spec.stage_dir))
        write_json(paths.spec, to_dict(replace(spec, device=device)))
        logs = paths.attempt(attempt).logs
        logs.mkdir(parents=True, exist_ok=True)
        count = spec.parallel.world_size
        with ExitStack() as stack:
            started = []
            for rank in range(count):
                place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "NODE_RANK": 0}
                given = {f"HPCLM_{name}": str(value) for name, value in place.items()} | variables
                log = stack.enter_context((logs / f"{rank:05d}.log").open("w"))
                argv: list[Any] = [*PYTHON, "-m", "hpclm.worker", paths.root, f"{attempt:03d}"]
                process = start(argv, env=environment(PYTHONWARNINGS="ignore", **given), stdout=log, stderr=log)
                started.append(stack.enter_context(process))
            codes = [process.wait() for process in started]
        assert codes[0] == code, (logs / "00000.log").read_text()[-4000:]
        return paths

    return ranks


PYTHON = [sys.executable]
