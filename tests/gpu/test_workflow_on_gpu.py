"""A user's commands on a machine with a GPU: doctor, the image's smoke test, whole recipes from submit to collect."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.gpu.conftest import REHEARSES
from tests.support.processes import ROOT, hpclm, python

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
ON_ONE = ["--devices-per-node", "1"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, device: str) -> Path:
    """A folder with the demo's recipe and data, and its run, on one device."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "demo.yaml").write_text((ROOT / "recipes" / "demo.yaml").read_text())
    hpclm("data", "demo", cwd=folder)
    changes: dict[str, object] = {"resources.device": device}
    changes |= {f"stages.{name}.parallel.tensor": 1 for name in ("ptune", "alone", "evaluate")}
    if REHEARSES:
        changes |= {"stages.pretrain.trainer.max_steps": 20, "stages.ptune.trainer.max_steps": 20}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    hpclm("submit", "recipes/demo.yaml", "--wait", *ON_ONE, *words, cwd=folder)
    return folder


def test_the_demo_from_submit_to_collect(demo: Path) -> None:
    hpclm("collect", "--pred-file", "answers.txt", cwd=demo)
    (folder,) = (demo / "runs").glob("demo-*")
    summary = json.loads(next(iter(folder.rglob("summary.json"))).read_text())
    print(json.dumps(summary)[:2000])
    assert (demo / "answers.txt").read_text().count("\n") > 10
    status = json.loads(hpclm("status", "--json", cwd=demo))
    print(json.dumps(status)[:3000])


def test_the_preflight_check_asks_the_driver(demo: Path, tmp_path: Path, device: str) -> None:
    (stage,) = (demo / "runs").glob("demo-*/stages/*ptune")
    done = python("-m", "hpclm.nodes.preflight", stage, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(next((tmp_path / "preflight").glob("*.json")).read_text())
    # what runs beside it uses the GPU too
    assert [one for one in report["findings"] if one["check"] != "processes"] == []
    if device == "gpu":
        assert report["facts"]["gpu"]["state"] == "ok"


def test_doctor_names_the_gpus(tmp_path: Path, device: str, gpus: int) -> None:
    if REHEARSES:
        pytest.skip("no driver to ask")
    found = json.loads(hpclm("doctor", "--json", "--runs-dir", tmp_path))
    seen = found["here"]["gpu"]["gpus"]
    names = "p.name, p.major, p.minor, p.total_memory, p.uuid"
    asked = f"import torch; p = torch.cuda.get_device_properties(0); print({names}, sep='|')"
    name, major, minor, memory, uuid = python("-c", asked).stdout.strip().split("|")
    assert len(seen) == gpus
    assert seen[0]["name"] == name
    assert seen[0]["capability"] == [int(major), int(minor)]
    assert seen[0]["uuid"].removeprefix("GPU-") == uuid
    assert math.isclose(seen[0]["memory_total_mib"], int(memory) / 2**20, rel_tol=0.03)


def test_the_smoke_test_of_an_image_trains_a_step(device: str) -> None:
    if REHEARSES:
        pytest.skip("needs NCCL")
    done = python(ROOT / "containers" / "smoke.py", "--train")
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_the_assistant_recipe(tmp_path: Path, shared_data: Path, device: str) -> None:
    if REHEARSES:
        pytest.skip("takes minutes on a CPU")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "assistant.yaml").write_text((ROOT / "recipes" / "assistant.yaml").read_text())
    hpclm("data", "prepare", "assistant", shared_data / "assistant", "assistant-data", cwd=tmp_path)
    names = ("ptune", "alone", "evaluate")
    words = [word for name in names for word in ("--set", f"stages.{name}.parallel.tensor=1")]
    words += ["--set", "resources.device=gpu", "--nodes", "1"]
    hpclm("submit", "recipes/assistant.yaml", "--wait", *words, cwd=tmp_path)
    print(hpclm("collect", "--pred-file", "answers.txt", cwd=tmp_path))
    print(hpclm("status", "--json", cwd=tmp_path)[:3000])
