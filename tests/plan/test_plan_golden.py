"""What a person sees and what `plan --json` says, whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpclm.planning import make_plan, picture
from hpclm.recipe import load
from tests.support.samples import changed, write

RECIPES = Path(__file__).parents[2] / "recipes"
Golden = Callable[[str, str], None]

CASES: list[tuple[str, str, list[str], int | None, int | None]] = [
    ("gpt20b", "gpt20b_ptune.yaml", [], 2, None),
    ("gpt20b-pipeline", "gpt20b_ptune.yaml", ["parallel.pipeline=2", "parallel.sequence=true"], 2, None),
    ("gpt345m-many-nodes", "gpt345m_ptune.yaml", ["batch.global=128"], 16, 8),
    ("gpt5b-prompt-tuning", "gpt5b_prompt_tuning.yaml", [], None, None),
    ("gpt5b-indivisible", "gpt5b_ptune.yaml", ["parallel.tensor=3"], 2, 4),
]


@pytest.mark.parametrize(("name", "recipe", "overrides", "nodes", "devices"), CASES, ids=[case[0] for case in CASES])
def test_the_picture(
    golden: Golden, name: str, recipe: str, overrides: list[str], nodes: int | None, devices: int | None
) -> None:
    loaded = load(RECIPES / recipe, overrides, nodes=nodes, devices_per_node=devices)
    plan = make_plan(loaded, files=False)
    findings = "".join(f"{finding.severity}: {finding}\n" for finding in plan.findings)
    golden(f"{name}.txt", (picture(plan) + "\n" + findings).replace(f"{RECIPES.parent}/", ""))


def test_the_json(golden: Golden, tmp_path: Path) -> None:
    plan = make_plan(load(write(tmp_path, changed())))
    text = json.dumps(plan.to_dict(), indent=1, ensure_ascii=False) + "\n"
    golden("sample.json", text.replace(str(tmp_path), "FOLDER"))


def test_the_json_has_what_scripts_rely_on() -> None:
    made = make_plan(load(RECIPES / "gpt20b_ptune.yaml", nodes=2)).to_dict()
    wanted = {
        "tensor_parallel": 4,
        "pipeline_parallel": 1,
        "data_parallel": 4,
        "world_size": 16,
        "nodes": 2,
        "devices_per_node": 8,
        "gradient_accumulation_steps": 4,
    }
    assert {key: made[key] for key in wanted} == wanted
    assert len(made["ranks"]) == 16
    place = {"rank": 13, "node": 1, "local_rank": 5, "pipeline": 0, "data": 3, "context": 0, "tensor": 1}
    assert made["ranks"][13] == place
    assert {"severity", "where", "message", "rule", "value", "choices"} == set(made["findings"][0])
