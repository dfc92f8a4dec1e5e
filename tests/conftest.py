"""What all tests share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A loaded machine is slow now and then; that is no finding.
settings.register_profile("hpclm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hpclm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the golden files instead of comparing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """With `-m ""` the tests of a GPU are chosen on every machine, and say why they do not run on this one."""
    if item.get_closest_marker("gpu") is None or os.environ.get("HPCLM_GPU_TESTS") == "rehearse":
        return
    torch = pytest.importorskip("torch", reason="torch is not installed, and it drives the CUDA device")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device on this machine")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is that of `golden/<name>` next to the test, whole.
    An absent file is a failure."""
    folder = request.path.parent / "golden"

    def compare(name: str, text: str) -> None:
        path: Path = folder / name
        if request.config.getoption("--update-goldens"):
            folder.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is not there; look at the text and run pytest --update-goldens"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that the repository does not carry."""
    folder = Path(os.environ.get("HPCLM_TEST_DATA") or Path(__file__).parents[1].parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: GPT-2's vocabulary and the assistant set; set HPCLM_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def alone() -> Iterator[Any]:
    """A world of one rank in this process, for tests of the engine's parts. There is one world a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hpclm.engines.megatron.ranks import cpu_standins

        cpu_standins.install()
        import torch
        import torch.distributed as dist

        from hpclm.core.parallel_spec import ParallelSpec
        from hpclm.engines.megatron.ranks import groups

        yield groups.initialize(dist.HashStore(), 0, ParallelSpec(1, 1, 1, 1, 1, 1), torch.device("cpu"), 1)
        dist.destroy_process_group()
