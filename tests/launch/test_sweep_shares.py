"""What a sweep's members have in common is made, read and asked for once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.planning import row_checks
from hpclm.runs import submit, sweep
from hpclm.schedulers.local.scheduler import Local
from tests.support.harness import Stage, use_fake_worker
from tests.support.samples import DROP, changed, write

STAGES = (Stage("pretrain"), Stage("ptune", "p-tuning"))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stages = [{"name": "pretrain", "task": "pretrain"}, {"name": "ptune", "task": "p-tuning", "base": "pretrain"}]
    path = write(tmp_path, changed(("container", None), ("stages", stages), ("generation", DROP)))
    monkeypatch.chdir(tmp_path)
    use_fake_worker(monkeypatch, STAGES)
    return path


def counted(monkeypatch: pytest.MonkeyPatch, calls: Counter[str], owner: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def test_a_sweep_has_one_payload_one_reading_and_one_question(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    counted(monkeypatch, calls, row_checks, "read_rows")
    counted(monkeypatch, calls, Local, "capabilities")
    for module in (submit, sweep):
        counted(monkeypatch, calls, module, "stage_payload")
    assert cli.run(["submit", str(recipe), "--sweep", "seed=1,2,3", "--max-running", "3", "--wait"]) == 0
    assert calls == {"read_rows": 2, "capabilities": 1, "stage_payload": 1}  # rows to train on and to validate


def test_runs_of_the_same_code_share_their_payload(recipe: Path) -> None:
    Path("runs").mkdir()
    for name in ("one", "two"):
        submit.write(submit.prepare(submit.Request(recipe, name=name, runs_dir=Path("runs"))))
    first, second = sorted(Path("runs").glob("*/payload/hpclm/core/layout.py"))
    assert first.samefile(second)
    assert not first.stat().st_mode & 0o222  # nobody changes both by changing one
