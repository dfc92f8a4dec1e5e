"""Whatever stands at any place of a recipe, the answer is a plan or a RecipeError, never another exception."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm.core.errors import RecipeError
from hpclm.planning import Plan, make_plan, picture, stage_specs
from hpclm.recipe import load
from tests.support.samples import RECIPE, changed, dump, write_checkpoint, write_files


def keys(value: Any = RECIPE, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the sample."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield f"{prefix}{key}"
        yield from keys(item, f"{prefix}{key}.")


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 70)
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["pretrain", "ptune", "evaluate", "base", "./base", "train.jsonl", "{answer}", "{", "<|VIRTUAL_PROMPT_9|>"]
    )
    | st.lists(st.integers(-2, 9) | st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    write_files(path)
    write_checkpoint(path)
    return path


def outcome(path: Path, overrides: list[str]) -> Plan | None:
    """The plan, shown in every way there is; None where the recipe is refused."""
    try:
        plan = make_plan(load(path, overrides))
    except RecipeError:
        return None
    picture(plan)
    json.dumps(plan.to_dict())
    assert all(finding.message and finding.where for finding in plan.findings)
    if not plan.errors:
        assert len(stage_specs(plan, "run", path.parent / "run")) == len(plan.stages)
    return plan


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(keys())), VALUES), min_size=1, max_size=3))
def test_no_value_anywhere_breaks_the_plan(folder: Path, changes: list[tuple[str, Any]]) -> None:
    # Longest keys first, so that no change removes the way to the next.
    recipe = changed(*sorted(changes, key=lambda change: -change[0].count(".")))
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8", errors="replace")
    outcome(folder / "recipe.yaml", [])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(keys())), st.text(max_size=12) | VALUES.map(str))
def test_no_override_breaks_the_plan(folder: Path, key: str, value: str) -> None:
    (folder / "recipe.yaml").write_text(dump(RECIPE))
    outcome(folder / "recipe.yaml", [f"{key}={value}"])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_line_breaks_the_row_check(folder: Path, line: bytes) -> None:
    (folder / "recipe.yaml").write_text(dump(changed(("data.validation", ["odd.jsonl"]))))
    (folder / "odd.jsonl").write_bytes(line)
    outcome(folder / "recipe.yaml", [])
