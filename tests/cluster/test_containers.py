"""Runs inside containers on the real scheduler: Pyxis's options on the real srun, Enroot and Apptainer by stand-ins."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpclm.core.files import read_object
from hpclm.core.site import Site, SiteContainer
from hpclm.planning.plan import ContainerPlan, MountPlan
from hpclm.runs.record import Run
from hpclm.runs.submit import submit
from launch.dev_cluster import Cluster
from tests.support.container_programs import STANDINS, install
from tests.support.harness import CHAIN, Stage, prepared, until_over, use_fake_worker, words
from tests.support.processes import hpclm
from tests.support.samples import changed, write

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

IMAGE = ContainerPlan("nvcr.io/nvidia/nemo:23.02", environment={"ODD": "it's $HOME `x` #1, a:b"})


def site(runtime: str, **changes: object) -> Site:
    return Site("mine", "slurm", container=SiteContainer(runtime, **changes))  # type: ignore[arg-type]


def logs(run: Run, stage: str) -> str:
    return "\n".join(path.read_text() for path in sorted(run.paths.stage(stage).attempts.glob("*/logs/*.log")))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    install(folder, "enroot", "singularity", "apptainer")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("runtime", ["enroot", "singularity", "apptainer"])
def test_a_chain_runs_inside(
    runtime: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster, programs: Path
) -> None:
    folder = tmp_path / "it's a folder #1"
    stages = tuple(dataclasses.replace(stage, nodes=2, devices_per_node=1, container=IMAGE) for stage in CHAIN)
    use_fake_worker(monkeypatch, stages)
    said: list[str] = []
    run = submit(prepared(folder, stages, site(runtime)), said.append)
    assert said[0].startswith("importing docker://nvcr.io/nvidia/nemo:23.02")
    status = until_over(run)
    assert words(status) == {"pretrain": "completed", "ptune": "completed", "evaluate": "completed"}, status
    seen = logs(run, "pretrain")
    # the image's own OMP_NUM_THREADS (99) and PYTHONPATH lose against the run's
    assert "rank 0 of 2, local 0, node 0, threads 1" in seen
    assert "rank 1 of 2, local 0, node 1, threads 1" in seen
    assert f"hpclm from {run.paths.payload}" in seen


@pytest.mark.parametrize("runtime", ["enroot", "apptainer"])
def test_the_real_engine_inside(
    runtime: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster, programs: Path
) -> None:
    """The image has torch and the engine and nothing of ours; the folder is mounted by the site."""
    recipe = changed(
        ("container", {"image": "nvcr.io/nvidia/nemo:23.02"}),
        ("text.document", "line"),
        ("stages", [{"name": "pretrain", "task": "pretrain"}]),
    )
    for key in ("data", "task_templates", "prompt", "generation"):
        del recipe[key]
    write(tmp_path, recipe)
    (tmp_path / "text" / "b.txt").write_text("".join(f"line {n} of a text that repeats itself\n" for n in range(400)))
    profile = tmp_path / "site.yaml"
    profile.write_text(f"scheduler: slurm\ncontainer: {{runtime: {runtime}, mounts: ['{tmp_path}:{tmp_path}:ro']}}\n")
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    argv = ["submit", "recipe.yaml", "--site", str(profile), "--nodes", "2", "--devices-per-node", "1", "--wait"]
    hpclm(*argv, cwd=tmp_path)
    (result,) = tmp_path.glob("runs/*/stages/pretrain/result.json")
    assert read_object(result)["steps"] == 10  # type: ignore[index]


def test_an_image_in_a_job_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster, programs: Path
) -> None:
    stages = (dataclasses.replace(CHAIN[0], container=IMAGE), dataclasses.replace(CHAIN[1], container=IMAGE))
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, site("enroot", pull="job")))
    assert len(run.record.submits[0].image_jobs) == 1
    assert words(until_over(run)) == {"pretrain": "completed", "ptune": "completed"}


def test_an_image_that_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: Cluster, programs: Path
) -> None:
    private = dataclasses.replace(IMAGE, image="private.example/a/b:1")
    stages = (dataclasses.replace(CHAIN[0], container=private),)
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, site("enroot", pull="job")))
    status = until_over(run)
    assert status.state == "skipped"
    assert "its image could not be imported (job " in status.reason


@pytest.fixture(scope="module", params=["VERSION_23", "VERSION_24"])
def pyxis_version(request: pytest.FixtureRequest) -> str:
    """0.23 and 0.24 take white space in mounts differently."""
    return str(request.param)


@pytest.fixture(scope="module")
def with_pyxis(pyxis_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of its own whose srun has Pyxis's options, from a plugin built here."""
    compiler, header = shutil.which("gcc"), Path("/usr/include/slurm/spank.h")
    if compiler is None or not header.exists():
        pytest.fail(
            f"building the plugin needs gcc and {header}; on Debian or Ubuntu: apt-get install gcc libslurm-dev"
        )
    folder = tmp_path_factory.mktemp("spank")
    built = folder / "pyxis.so"
    flags = ["-shared", "-fPIC", "-Wall", f"-D{pyxis_version}"]
    subprocess.run([compiler, *flags, "-o", built, STANDINS / "pyxis.c"], check=True)
    (folder / "plugstack.conf").write_text(f"required {built}\n")
    before = os.environ.get("SLURM_CONF")
    with Cluster(2, extra=(f"PlugStackConfig={folder}/plugstack.conf",)) as cluster:
        os.environ.update(cluster.environment)
        yield cluster
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before


def test_pyxis_options_on_the_real_srun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_pyxis: Cluster, pyxis_version: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    image = dataclasses.replace(IMAGE, mounts=(MountPlan(str(data), "/data", True),), writable=True)
    stages = (Stage("train", nodes=2, devices_per_node=1, container=image),)
    use_fake_worker(monkeypatch, stages)
    python = Site("mine", "slurm", python=(sys.executable,))
    run = submit(prepared(tmp_path / "it's a folder #1", stages, python))
    assert run.record.site.container.runtime == "pyxis", "srun says itself that it has Pyxis"
    assert until_over(run).state == "completed"
    seen = logs(run, "train")
    root = run.paths.root
    mounts = f"mounts={data}:/data:ro,{root}:{root}"
    assert {
        "image=nvcr.io#nvidia/nemo:23.02",
        "home=no",
        "writable=yes",
        mounts.replace(" ", "\\040") if pyxis_version == "VERSION_23" else mounts,
        f"workdir={root}/stages/train",
        "env=NVIDIA_VISIBLE_DEVICES,ODD,OMP_NUM_THREADS,PYTHONNOUSERSITE,PYTHONPATH",
    } <= set(seen.splitlines())
    assert f"in {root}/stages/train" in seen


def test_a_missing_mount_ends_with_the_runtimes_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_pyxis: Cluster
) -> None:
    image = dataclasses.replace(IMAGE, mounts=(MountPlan("/no/such/folder", "/data", True),))
    stages = (Stage("train", nodes=1, devices_per_node=1, container=image),)
    use_fake_worker(monkeypatch, stages)
    run = submit(prepared(tmp_path / "runs", stages, Site("mine", "slurm", python=(sys.executable,))))
    status = until_over(run)
    assert status.state == "failed"
    assert "could not be started on any node" in status.reason
