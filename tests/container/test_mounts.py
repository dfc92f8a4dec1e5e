"""What is told before the queue of folders that a container will not see, and where the payload is on the path."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import changed, write

from hpclm.runs.submit import Prepared, Request, prepare


def prepared(folder: Path, container: dict[str, object], *, mounts: str = "[]", extra: str = "") -> Prepared:
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
        assert f"{folder / name} is in no folder that is mounted" in notes
    assert "add it to container.mounts" in notes


@pytest.mark.parametrize("by", ["recipe", "site", "home"])
def test_and_not_those_that_one_shows(by: str, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "data"
    folder.mkdir()
    mount = {"source": str(folder), "target": str(folder)}
    container = {"recipe": {"mounts": [mount]}, "site": {}, "home": {"home": True}}[by]
    mounts = f"['{folder}:{folder}']" if by == "site" else "[]"
    assert not [note for note in prepared(folder, container, mounts=mounts).notes if "mount" in note]


def test_a_source_that_is_not_here_is_noted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    notes = "\n".join(prepared(tmp_path, {"mounts": [{"source": str(gone), "target": "/x"}]}).notes)
    assert f"{gone} is to be mounted and is not on this machine" in notes


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
