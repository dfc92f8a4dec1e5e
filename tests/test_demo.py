"""The README's demo, as a user runs it: data, the whole recipe on this machine, results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.processes import hpclm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# It takes about a minute and a half on two idle cores.
MINUTES = 15


def test_the_demo_from_data_to_scores(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    shutil.copy(ROOT / "recipes" / "demo.yaml", tmp_path / "recipes")
    hpclm("data", "demo", cwd=tmp_path)
    hpclm("submit", "recipes/demo.yaml", "--wait", cwd=tmp_path, timeout=60 * MINUTES)
    hpclm("collect", "--pred-file", "test-results.txt", cwd=tmp_path)

    (run,) = (tmp_path / "runs").glob("demo-*")

    def exact(stage: str) -> dict[str, float]:
        scores = json.loads((run / "stages" / stage / "result.json").read_text())["scores"]
        return {task: score["exact_match"] for task, score in scores.items()}

    # what the frozen model cannot know, the prompts tell it
    assert all(score < 0.3 for score in exact("alone").values())
    assert all(score > 0.9 for score in exact("evaluate").values())
    rows = [json.loads(line) for line in (tmp_path / "demo-data" / "test.jsonl").read_text().splitlines()]
    lines = (tmp_path / "test-results.txt").read_text().splitlines()
    assert len(lines) == len(rows)
    assert all(line.startswith(row["words"] + " =") for line, row in zip(lines, rows, strict=True))
    assert {"summary.md", "resolved.json", "environment.json", "checkpoints"} <= {
        p.name for p in (run / "results").iterdir()
    }
