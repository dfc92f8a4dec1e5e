"""One description, each runtime's exact flags; and the same description inside, where the payload says what it sees."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpclm.containers import ContainerRequest, Mount, launch_spec
from hpclm.containers.launch import PASSED
from hpclm.core.errors import SiteError
from hpclm.schedulers.slurm.job_script import JOB_VARIABLES
from tests.support.processes import run

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
        "--container-env=A,B,NVIDIA_DRIVER_CAPABILITIES,NVIDIA_VISIBLE_DEVICES",
    )
    assert spec.prefix == ()
    devices = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    assert spec.environment == {**REQUEST.environment, **devices, "ENROOT_LOGIN_SHELL": "n"}


def test_enroot() -> None:
    spec = launch_spec("enroot", dataclasses.replace(REQUEST, image="/images/a.sqsh", passed=JOB_VARIABLES))
    named = ["NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "HPCLM_IN_A", "HPCLM_IN_B"]
    passed = [word for name in (*named, *sorted({*PASSED, *JOB_VARIABLES})) for word in ("--env", name)]
    assert list(spec.prefix[:-5]) == [
        "enroot", "start",
        "--mount", "/scratch/me:/work:none:x-create=auto,rbind",
        "--mount", "/data:/data:none:x-create=auto,rbind,ro",
        *passed, "/images/a.sqsh",
    ]  # fmt: skip
    assert spec.prefix[-5:-3] == ("sh", "-c")
    assert spec.prefix[-2:] == ("sh", "/work")
    assert spec.environment == {
        "ENROOT_MOUNT_HOME": "n",
        "ENROOT_ROOTFS_WRITABLE": "n",
        "ENROOT_LOGIN_SHELL": "n",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "HPCLM_IN_A": "=1",
        "HPCLM_IN_B": "=it's $HOME",
    }
    with pytest.raises(SiteError, match="Enroot needs an image file; import it"):
        launch_spec("enroot", REQUEST)
    plain = dataclasses.replace(REQUEST, image="/images/a.sqsh", gpu=False, home=True, writable=True, environment={})
    without = launch_spec("enroot", plain)
    assert without.environment == {
        "ENROOT_MOUNT_HOME": "y",
        "ENROOT_ROOTFS_WRITABLE": "y",
        "ENROOT_LOGIN_SHELL": "n",
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
    assert "--rw" in without.prefix


@pytest.mark.parametrize("runtime", ["enroot", "pyxis"])
def test_what_enroots_hooks_read_is_not_hidden_from_them(runtime: str) -> None:
    """GPUs are mounted by hooks, before anything runs inside: an image that asks for all needs void on a CPU node."""
    own = {"MELLANOX_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "1", "A": "1"}
    for gpu, given, devices in ((True, {}, "all"), (False, {}, "void"), (True, own, "1"), (False, own, "1")):
        request = dataclasses.replace(REQUEST, image="/images/a.sqsh", gpu=gpu, environment=given)
        spec = launch_spec(runtime, request)
        assert spec.environment["NVIDIA_VISIBLE_DEVICES"] == devices
        assert spec.environment.get("MELLANOX_VISIBLE_DEVICES") == given.get("MELLANOX_VISIBLE_DEVICES")
        words = " ".join((*spec.srun_args, *spec.prefix))
        assert "NVIDIA_VISIBLE_DEVICES" in words


@pytest.mark.parametrize("program", ["singularity", "apptainer"])
def test_singularity_and_apptainer(program: str) -> None:
    spec = launch_spec(program, REQUEST)
    assert list(spec.prefix[:-4]) == [
        program, "exec", "--nv", "--no-home", "--bind", "/scratch/me:/work", "--bind", "/data:/data:ro",
        "--pwd", "/work", "docker://nvcr.io/nvidia/nemo:23.02",
    ]  # fmt: skip
    tool = f"{program.upper()}ENV_"
    # the driver's libraries come before a libcuda that the image may bring along
    assert spec.environment[f"{tool}PREPEND_LD_LIBRARY_PATH"] == "/.singularity.d/libs"
    assert spec.environment["HPCLM_IN_B"] == "=it's $HOME"
    plain = launch_spec(program, dataclasses.replace(REQUEST, gpu=False, home=True, writable=True))
    assert "--nv" not in plain.prefix
    assert "--no-home" not in plain.prefix
    assert "--writable-tmpfs" in plain.prefix
    assert f"{tool}PREPEND_LD_LIBRARY_PATH" not in plain.environment


@pytest.mark.parametrize("runtime", ["pyxis", "enroot", "singularity", "apptainer"])
def test_mounts_that_a_runtime_would_split_or_execute_are_refused(runtime: str) -> None:
    takes = {"pyxis": "'# ", "enroot": "'# \"$`\\", "singularity": "'# \"$`\\,:", "apptainer": "'# \"$`\\,:"}[runtime]
    for character in "'# \"$`\\,:":
        for mount in (Mount(f"/a{character}b", "/x"), Mount("/x", f"/a{character}b")):
            request = dataclasses.replace(REQUEST, image="/images/a.sqsh", mounts=(mount,))
            if character in takes:
                launch_spec(runtime, request)
            else:
                with pytest.raises(
                    SiteError, match=r"container mount .* contains .*; rename it or use a symbolic link"
                ):
                    launch_spec(runtime, request)
    with pytest.raises(SiteError, match="must be absolute"):
        launch_spec(runtime, dataclasses.replace(REQUEST, mounts=(Mount("relative", "/x"),)))


@pytest.mark.parametrize(
    ("help_text", "mounts"),
    [
        ("--container-image=… --container-env=…", r"/a\040b:/c\040d"),  # 0.23 and before
        ("--container-image=… --container-unshare=NS[,NS...]", "/a b:/c d"),  # 0.24 escapes by itself
        (None, "/a b:/c d"),
    ],
)
def test_pyxis_gets_spaces_as_its_version_takes_them(help_text: str | None, mounts: str) -> None:
    request = dataclasses.replace(REQUEST, mounts=(Mount("/a b", "/c d"),), probe=lambda argv: help_text)
    assert f"--container-mounts={mounts}" in launch_spec("pyxis", request).srun_args


def test_pyxis_is_asked_only_where_its_versions_differ() -> None:
    def asked(argv: list[str]) -> str:
        raise AssertionError(argv)

    launch_spec("pyxis", dataclasses.replace(REQUEST, probe=asked))


SEEN = """
import importlib.util, json, os
found = importlib.util.find_spec("hpclm")
found = found is not None and found.origin is not None  # an editable install leaves a folder without a package
print(json.dumps({"cwd": os.getcwd(), "environment": dict(os.environ), "hpclm": found}))
"""


HOSTILE = {
    "SUBSHELL": "$(touch {here}/pwned) `touch {here}/pwned`",
    "DOLLAR": "$HOME ${HOME} $$",
    "QUOTED": '"quotes" around "it"',
    "SINGLE": "'single' and 'single'",
    "SLASHES": "a\\n\\\\b\\",
    "SPACES": "  before and after  ",
    "SIGNS": "#a, b:c; d=e & f | g > {here}/pwned",
    "EMPTY": "",
    "WORDS": "für 日本",
}


@pytest.mark.parametrize("runtime", ["enroot", "singularity", "apptainer"])
def test_no_value_is_cut_or_executed(
    runtime: str, tmp_path: Path, runtimes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apptainer executes what is in a value given its own way, and Enroot takes quotes off it."""
    runtimes(runtime)
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{runtime.upper()}_CLEANENV", "1")
    image = tmp_path / "image.sqsh"
    image.write_text(json.dumps({"source": "test", "prefixes": list(dict.fromkeys([sys.prefix, sys.base_prefix]))}))
    given = {name: value.replace("{here}", str(tmp_path)) for name, value in HOSTILE.items()}
    mounts = (Mount(str(tmp_path), str(tmp_path)),)
    spec = launch_spec(runtime, ContainerRequest(str(image), mounts, environment=given, passed=JOB_VARIABLES))
    env = {**os.environ, "SLURM_NTASKS": "3", **spec.environment}
    done = run([*spec.prefix, *spec.python, "-c", SEEN], env=env, cwd="/")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)["environment"]
    assert {name: seen.get(name) for name in given} == given
    assert not (tmp_path / "pwned").exists()
    assert seen["SLURM_NTASKS"] == "3"
    # an empty one would hide every GPU
    assert "CUDA_VISIBLE_DEVICES" not in seen


@pytest.mark.parametrize("runtime", ["singularity", "apptainer"])
def test_a_folder_with_a_comma_and_a_colon_is_mounted_where_that_can_be(
    runtime: str, tmp_path: Path, runtimes: Callable[..., None]
) -> None:
    runtimes(runtime)
    folder = tmp_path / 'at 12:30, "noon"'
    folder.mkdir()
    image = tmp_path / "image.sif"
    image.write_text(json.dumps({"source": "test", "prefixes": list(dict.fromkeys([sys.prefix, sys.base_prefix]))}))
    spec = launch_spec(runtime, ContainerRequest(str(image), (Mount(str(folder), str(folder)),), workdir=str(folder)))
    env = {**os.environ, **spec.environment}
    run([*spec.prefix, *spec.python, "-c", "open('made', 'w')"], env=env, check=True)
    assert (folder / "made").exists()


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
        passed=JOB_VARIABLES,
    )
    spec = launch_spec(runtime, request)
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    done = run([*spec.prefix, *spec.python, "-c", SEEN], env={**os.environ, **spec.environment})
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
