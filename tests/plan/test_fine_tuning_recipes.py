"""The shipped recipes of engine hf: they plan, and with models of their real sizes they fit their GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpclm.planning import make_plan
from hpclm.planning.memory_estimate import GIB
from hpclm.recipe import load
from tests.support.hf_sizes import MEMORY, RECIPES, shipped_recipe

NAMES = sorted(
    path.name
    for path in RECIPES.glob("*.yaml")
    if (tree := yaml.safe_load(path.read_text())).get("task") == "fine-tune"
    or any(stage.get("task") == "fine-tune" for stage in tree.get("stages", ()))
)


@pytest.mark.parametrize("name", NAMES)
def test_it_plans(name: str) -> None:
    assert make_plan(load(RECIPES / name), files=False).errors == ()


def test_all_of_the_documented_ones_are_here() -> None:
    assert {*MEMORY, "tiny_llama_alpaca.yaml"} == set(NAMES)


@pytest.mark.parametrize("name", MEMORY)
def test_its_memory_is_what_the_documentation_says(tmp_path: Path, name: str) -> None:
    plan = make_plan(load(shipped_recipe(tmp_path, name)))
    assert plan.errors == ()
    memory = plan.stages[0].memory
    assert memory is not None
    assert round(memory.total / GIB) == MEMORY[name]
    documented = (RECIPES.parent / "docs" / "fine-tuning.md").read_text()
    assert f"`{name}` | {plan.stages[0].parallel.world_size} | {MEMORY[name]} GiB" in documented  # type: ignore[union-attr]
