"""One description, each runtime's exact flags; and the same description inside, where the payload says what it sees."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpclm.container import PASSED, ContainerRequest, Mount, launch_spec
from hpclm.errors import SiteError

REQUEST = ContainerRequest(
    image="nvcr.io/nvidia/nemo:23.02",
    mounts=(Mount("/scratch/me", "/work"), Mount("/data", "/data", read_only=True)),
    workdir="/work",
    environment={"A": "1", "B": "it's $HOME"},
)


def test_pyxis() -> None:
    spec = launch_spec("pyxis", dataclasses.replace(REQUEST, writable=True))
    assert spec.srun_args == (
        "--container-image=nvcr.io#nvidia/nemo:23.02",
        "--no-container-mount-home",
        "--container-writable",
        "--container-mounts=/scratch/me:/work,/data:/data:ro",
        "--container-workdir=/work",
        "--container-env=A,B",
    )
    assert spec.prefix == ()
    assert spec.environment == REQUEST.environment


def test_enroot() -> None:
    spec = launch_spec("enroot", dataclasses.replace(REQUEST, image="/images/a.sqsh"))
    passed = [word for name in PASSED for word in ("--env", name)]
    assert list(spec.prefix) == [
        "enroot", "start",
        "--mount", "/scratch/me:/work:none:x-create=auto,rbind",
        "--mount", "/data:/data:none:x-create=auto,rbind,ro",
        "--env", "A=1", "--env", "B=it's $HOME", *passed,
        "/images/a.sqsh",
        "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", "/work",
    ]  # fmt: skip
    assert spec.environment == {
        "ENROOT_MOUNT_HOME": "n",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
    }
    with pytest.raises(SiteError, match="Enroot starts files; import it"):
        launch_spec("enroot", REQUEST)
    plain = dataclasses.replace(REQUEST, image="/images/a.sqsh", gpu=False, home=True, writable=True)
    without = launch_spec("enroot", plain)
    assert without.environment == {"ENROOT_MOUNT_HOME": "y"}
    assert "--rw" in without.prefix


@pytest.mark.parametrize("program", ["singularity", "apptainer"])
def test_singularity_and_apptainer(program: str) -> None:
    spec = launch_spec(program, REQUEST)
    assert list(spec.prefix) == [
        program, "exec", "--nv", "--no-home", "--bind", "/scratch/me:/work", "--bind", "/data:/data:ro",
        "--pwd", "/work", "docker://nvcr.io/nvidia/nemo:23.02",
    ]  # fmt: skip
    tool = f"{program.upper()}ENV_"
    # the driver's libraries come before a libcuda that the image may bring along
    assert spec.environment[f"{tool}PREPEND_LD_LIBRARY_PATH"] == "/.singularity.d/libs"
    assert spec.environment[f"{tool}B"] == "it's $HOME"
    plain = launch_spec(program, dataclasses.replace(REQUEST, gpu=False, home=True, writable=True))
    assert "--nv" not in plain.prefix
    assert "--no-home" not in plain.prefix
    assert "--writable-tmpfs" in plain.prefix
    assert f"{tool}PREPEND_LD_LIBRARY_PATH" not in plain.environment


def test_mounts_that_a_runtime_would_split_are_refused() -> None:
    for runtime in ("pyxis", "enroot", "singularity", "apptainer"):
        for path in ("/a,b", "/a:b", "relative"):
            with pytest.raises(SiteError, match="without comma or colon"):
                launch_spec(runtime, dataclasses.replace(REQUEST, mounts=(Mount(path, "/x"),)))


SEEN = """
import importlib.util, json, os
found = importlib.util.find_spec("hpclm") is not None and importlib.util.find_spec("hpclm.runs") is not None
print(json.dumps({"cwd": os.getcwd(), "environment": dict(os.environ), "hpclm": found}))
"""


@pytest.mark.parametrize("runtime", ["enroot", "singularity", "apptainer"])
def test_what_a_rank_sees_inside(
    runtime: str, tmp_path: Path, runtimes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes(runtime)
    hostile = tmp_path / "a folder with 'quotes' $(touch pwned) #1"
    hostile.mkdir()
    image = tmp_path / "image.sqsh"
    image.write_text(json.dumps({"source": "test", "prefixes": list(dict.fromkeys([sys.prefix, sys.base_prefix]))}))
    request = ContainerRequest(
        image=str(image),
        mounts=(Mount(str(hostile), str(hostile)),),
        workdir=str(hostile),
        environment={"PYTHONPATH": "/ours", "ODD": "it's $HOME `x` #1, a:b = c"},
    )
    spec = launch_spec(runtime, request)
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    done = subprocess.run(
        [*spec.prefix, *spec.python, "-c", SEEN],
        env={**os.environ, **spec.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["cwd"] == str(hostile)
    # what must hold wins over the image's own, and what tells a rank its place is there
    assert seen["environment"]["PYTHONPATH"] == "/ours"
    assert seen["environment"]["ODD"] == request.environment["ODD"]
    assert seen["environment"]["SLURM_PROCID"] == "7"
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert seen["hpclm"] is False, "the image must have nothing of ours"
    assert not list(tmp_path.rglob("pwned"))
