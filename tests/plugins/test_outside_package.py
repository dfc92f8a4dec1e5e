"""A package of somebody else's adds an engine, a task, a scheduler, a runtime, a metric, an importer and a tracker by
entry points alone, and a recipe that uses all of them runs to its collected results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import environment
from tests.support.waiting import wait_until

ENTRY_POINTS = """
[hpclm.engines]
shouter = acme_plugin:ENGINE
[hpclm.tasks]
shout = acme_plugin:TASK
[hpclm.schedulers]
acme = acme_plugin:SCHEDULER
[hpclm.runtimes]
acme-box = acme_plugin:BOX
[hpclm.metrics]
capitals = acme_plugin:CAPITALS
[hpclm.importers]
acme = acme_plugin:IMPORTER
[hpclm.trackers]
ledger = acme_plugin:TRACKER
"""
STEP = r"step (?P<step>\d+) loss (?P<loss>[\d.]+)"
SITE = "scheduler: acme\ncontainer: {runtime: acme-box}\n"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which the package is installed."""
    folder = tmp_path / "site-packages"
    metadata = folder / "acme_plugin-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "acme_plugin.py").write_text(Path(__file__).with_name("acme_plugin.py").read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    known = environment()
    return {**known, "PYTHONPATH": os.pathsep.join([str(folder), known.get("PYTHONPATH", "")])}


def hpclm(folder: Path, shell: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hpclm.cli", *arguments]
    return subprocess.run(argv, cwd=folder, env=shell, capture_output=True, text=True, timeout=300, check=False)


def test_one_of_everything_from_outside_runs_to_collect(tmp_path: Path, installed: dict[str, str]) -> None:
    rows = [{"taskname": "t", "text": f"row {n}", "answer": f"ROW {n}?!"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "theirs.yaml").write_text("acme_rows: rows.jsonl\n")
    (tmp_path / "mine.yaml").write_text(SITE)
    imported = hpclm(tmp_path, installed, "recipe", "import", "theirs.yaml", "-o", "recipe.yaml")
    assert imported.returncode == 0, imported.stderr
    submitted = hpclm(tmp_path, installed, "submit", "theirs.yaml", "--site", "./mine.yaml", "--wait")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "acme starts 1 stage(s)" in submitted.stderr
    collected = hpclm(tmp_path, installed, "collect", "--pred-file", "out.txt", "--json")
    assert collected.returncode == 0, collected.stderr
    assert (tmp_path / "out.txt").read_text().splitlines() == [f"row {n}ROW {n}?!" for n in range(3)]
    summary = json.loads(collected.stdout)["summary"]
    scores = summary["scores"]["t"]
    assert scores["exact_match"] == 1.0
    assert scores["capitals"] == pytest.approx(3 / 7)
    assert summary["stages"][0]["result"]["box"] == "acme/box:1"


def test_a_tracker_from_outside_has_its_options_and_every_number(tmp_path: Path, installed: dict[str, str]) -> None:
    program = {"argv": [sys.executable, "-c", "print('step 3 loss 0.5')"], "progress": STEP}
    stage = {"task": "program", "engine": "command", "program": program}
    resources = {"device": "cpu", "devices_per_node": 1, "time_limit_min": 5}
    tracking = {"others": {"ledger": {"reader": "us"}}}
    made = {"version": 1, "name": "p", **stage, "resources": resources, "tracking": tracking}
    (tmp_path / "recipe.json.yaml").write_text(json.dumps(made))
    submitted = hpclm(tmp_path, installed, "submit", "recipe.json.yaml", "--wait")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    pattern = "runs/*/stages/program/ledger/ledger.txt"
    # a stage is complete before what is beside it has ended
    (ledger,) = wait_until("both lines", lambda: [one for one in tmp_path.glob(pattern) if " 0.5" in one.read_text()])
    assert ledger.read_text().splitlines() == [f"{ledger.parents[3].name}/program for us", "3 train/loss 0.5"]
    later = hpclm(tmp_path, installed, "track", "--to", "ledger", "--folder", "later")
    assert later.returncode == 0, later.stderr
    (again,) = tmp_path.glob("later/*/program/ledger.txt")
    assert again.read_text() == ledger.read_text()


def test_what_is_not_installed_is_named(tmp_path: Path, installed: dict[str, str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"taskname": "t", "text": "x"}\n')
    (tmp_path / "theirs.yaml").write_text("acme_rows: rows.jsonl\n")
    made = hpclm(tmp_path, installed, "recipe", "import", "theirs.yaml", "-o", "recipe.yaml")
    assert made.returncode == 0, made.stderr
    without = hpclm(tmp_path, environment(), "plan", "recipe.yaml")
    assert without.returncode == 2
    assert "task: must be one of the allowed values, not the text 'shout'" in without.stderr
    assert "Traceback" not in without.stderr


def test_no_other_package_can_take_hpclms_own_names(tmp_path: Path, installed: dict[str, str]) -> None:
    metadata = next((tmp_path / "site-packages").glob("*.dist-info"))
    (metadata / "entry_points.txt").write_text("[hpclm.engines]\nmegatron = acme_plugin:ENGINE\n")
    code = "from hpclm.core.registries import ENGINES; print(ENGINES.location('megatron'))"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=installed, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "hpclm.engines.megatron.engine:ENGINE"


@pytest.mark.parametrize("kind", ["engine", "task", "scheduler", "runtime", "metric", "importer", "tracker"])
def test_an_entry_that_is_something_else_is_one_message(tmp_path: Path, installed: dict[str, str], kind: str) -> None:
    metadata = next((tmp_path / "site-packages").glob("*.dist-info"))
    (metadata / "entry_points.txt").write_text(f"[hpclm.{kind}s]\nodd = acme_plugin:NOTHING\n")
    code = f"from hpclm.core.registries import {kind.upper()}S; {kind.upper()}S.get('odd')"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=installed, capture_output=True, text=True, timeout=300, check=False)
    (message,) = done.stderr.splitlines()[-1:]
    assert "acme_plugin:NOTHING: the " in message
    assert "'odd' is a str; the package that declares it must give what hpclm." in message
