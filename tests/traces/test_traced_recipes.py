"""Every shipped recipe of engine megatron runs on the engine at its real size, each pipeline stage of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclm.core.records import to_dict
from hpclm.planning import make_plan, tracing
from hpclm.recipe import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path.name
    for pattern in ("gpt*.yaml", "codeparrot_small.yaml", "llama3_*_pretrain.yaml", "mixtral*.yaml")
    for path in (ROOT / "recipes").glob(pattern)
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_recipe_runs_on_the_engine(recipe: str) -> None:
    """Models and rows are not here, and not needed."""
    found = tracing.trace(make_plan(load(ROOT / "recipes" / recipe)), None)
    assert [one.error for one in found] == [None] * len(found)
    trains_all = "pretrain" in recipe or "codeparrot" in recipe
    expected = {"pretrain"} if trains_all else {"ptune", "evaluate"}
    assert {one.stage for one in found} >= expected or "prompt_tuning" in recipe
    for stage, one in tracing.worst(found).items():  # the plan's is the most loaded rank's
        assert one.estimate_bytes == pytest.approx(one.peak_bytes, rel=0.1), stage
    assert to_dict(found[0])["where"]
