"""Warnings before submitting about folders that a container will not see, and the payload's place on PYTHONPATH."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from hpclm.containers import ContainerRequest, launch_spec, parse_image
from hpclm.core.errors import SiteError
from hpclm.recipe import load
from hpclm.recipe.site_profile import read_profile
from hpclm.runs.submit import Prepared, Request, prepare
from tests.support.samples import changed, write


def prepared(folder: Path, container: Mapping[str, object], *, mounts: str = "[]", extra: str = "") -> Prepared:
    recipe = write(folder, changed(("container", {"image": "nvcr.io/nvidia/nemo:23.02", **container})))
    site = folder / "site.yaml"
    site.write_text(f"scheduler: slurm\ncontainer: {{runtime: enroot, mounts: {mounts}}}\n{extra}")
    return prepare(Request(recipe, site=str(site), runs_dir=folder / "runs"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_inputs_that_no_mount_shows_are_noted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    folder = tmp_path / "data"
    notes = "\n".join(prepared(folder, {}).notes)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "text"):
        assert f"{folder / name} is not in a mounted folder" in notes
    assert "add it to container.mounts" in notes


@pytest.mark.parametrize("by", ["recipe", "site", "home"])
def test_and_not_those_that_one_shows(by: str, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "data"
    folder.mkdir()
    mount = {"source": str(folder), "target": str(folder)}
    containers: dict[str, dict[str, object]] = {"recipe": {"mounts": [mount]}, "site": {}, "home": {"home": True}}
    mounts = f"['{folder}:{folder}']" if by == "site" else "[]"
    assert not [note for note in prepared(folder, containers[by], mounts=mounts).notes if "mount" in note]


def test_a_source_that_is_not_here_is_noted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    notes = "\n".join(prepared(tmp_path, {"mounts": [{"source": str(gone), "target": "/x"}]}).notes)
    assert f"{gone} is to be mounted but does not exist on this machine" in notes


def test_nobodys_pythonpath_hides_the_payload(tmp_path: Path) -> None:
    """Without hpclm in the image, the run's own copy is the only one there is."""
    for container, extra, behind in (
        ({"environment": {"PYTHONPATH": "/mine"}}, "", ":/mine"),
        ({}, "environment: {PYTHONPATH: /site}\n", ":/site"),
        ({}, "", ""),
    ):
        one = prepared(tmp_path, container, extra=extra)
        for job in one.jobs:
            assert job.launch.environment["HPCLM_IN_PYTHONPATH"] == f"={one.paths.payload}{behind}"


def test_pull_never_refuses_what_is_not_there_and_takes_what_is(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    recipe = write(folder, changed(("container", {"image": "nvcr.io/nvidia/nemo:23.02"})))
    site = tmp_path / "site.yaml"
    for runtime, suffix in (("enroot", ".sqsh"), ("apptainer", ".sif")):
        images = tmp_path / runtime
        images.mkdir()
        site.write_text(f"scheduler: local\ncontainer: {{runtime: {runtime}, pull: never, images: {images}}}\n")
        request = Request(recipe, site=str(site), runs_dir=tmp_path / "runs")
        (first, *_) = prepare(request).problems
        assert "is not imported" in first
        assert "`hpclm image pull nvcr.io/nvidia/nemo:23.02`" in first
        file = images / parse_image("nvcr.io/nvidia/nemo:23.02").file_name(suffix)
        file.touch()
        there = prepare(request)
        assert not [problem for problem in there.problems if "imported" in problem]
        assert all(str(file) in job.launch.prefix for job in there.jobs)
    site.write_text("scheduler: local\ncontainer: {runtime: pyxis, pull: never}\n")
    assert not [problem for problem in prepare(request).problems if "imported" in problem]


@pytest.mark.parametrize("runtime", ["pyxis", "enroot"])
def test_a_sif_is_refused_where_it_cannot_be_started(runtime: str) -> None:
    with pytest.raises(SiteError, match=r"needs \.sqsh"):
        launch_spec(runtime, ContainerRequest("/images/a.sif"))


def test_the_documented_examples_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "containers.md").read_text()
    recipes, sites, secrets = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "site.yaml"
    path.write_text(f"scheduler: slurm\n{sites}{secrets}")
    assert set(read_profile(path).secrets) == {"HF_TOKEN", "WANDB_API_KEY"}
    assert read_profile(path).container.images == "/shared/images"
    written = yaml.safe_load(recipes)["container"]
    assert load(write(tmp_path, changed(("container", written)))).resolved()
