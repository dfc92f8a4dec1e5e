"""Machines with GPUs that are not there: the real nvidia-ml-py on a stand-in for the driver's library."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from hpclm.core.records import from_dict
from hpclm.nodes.nvml import Probe
from tests.support.processes import ROOT, python

_SOURCE = Path(__file__).with_name("fake_nvml.c")


@functools.cache
def _built(*flags: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hpclm-fake-nvml-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", library, _SOURCE], check=True)
    return folder


def machine(what: str, *flags: str) -> dict[str, str]:
    """The environment of a process that sees this machine (see fake_nvml.c)."""
    return {
        **os.environ,
        "HPCLM_FAKE_NVML": what,
        "LD_LIBRARY_PATH": str(_built(*flags)),
        "PYTHONPATH": str(ROOT),
    }


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, what: str) -> None:
    """From now on, processes that are started see this machine."""
    for name in ("HPCLM_FAKE_NVML", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, machine(what)[name])


def call(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return python(*argv, env=environment)


def probed(what: str, *flags: str) -> Probe:
    """What NVML says on this machine. A process of its own: a library is loaded once."""
    code = "import json, dataclasses; from hpclm.nodes import nvml; print(json.dumps(dataclasses.asdict(nvml.probe())))"
    done = call(machine(what, *flags), "-c", code)
    assert done.returncode == 0, done.stderr
    return from_dict(Probe, json.loads(done.stdout))
