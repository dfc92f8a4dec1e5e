"""`make gpu`, as far as a machine without GPUs goes: what it installs, and what it says where there is none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from launch import gpu
from tests.support.processes import ROOT, environment, python


def wheel(folder: Path, name: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as made:
        made.writestr(
            f"{name}-1.0.dist-info/METADATA", "Name: x\n" + "".join(f"Requires-Dist: {need}\n" for need in needs)
        )


def test_only_what_is_missing_is_taken_from_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, "pydantic", "pydantic_core ==2.0", "typing-extensions>=4", 'email-validator; extra == "email"')
    wheel(tmp_path, "pydantic_core", "typing-extensions")
    wheel(tmp_path, "typing_extensions")
    wheel(tmp_path, "email_validator")
    wheel(tmp_path, "tokenizers")
    monkeypatch.setattr(gpu, "is_installed", lambda name: name == "typing-extensions")
    found = gpu.chosen_wheels(["pydantic>=2.7,<3"], tmp_path)
    assert sorted(path.name.split("-")[0] for path in found) == ["pydantic", "pydantic_core"]


def test_its_ranges_are_the_projects() -> None:
    tomllib = pytest.importorskip("tomllib")  # in the language since 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)}
    own = {*gpu.NEEDED.values(), *gpu.PEERS.values()} - {gpu.NEEDED["megatron.core"]}
    assert own <= known
    assert gpu.NEEDED["megatron.core"] in (ROOT / "containers" / "requirements.txt").read_text()


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    done = python(ROOT / "launch" / "gpu.py", "--out", tmp_path / "report", env=environment(CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 1, done.stdout
    assert "torch sees no GPU here" in done.stdout
    assert not (tmp_path / "report" / "report.json").exists()
