"""docs/recipe.md says what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from hpclm.recipe.error_messages import section_of
from hpclm.recipe.reference import markdown
from hpclm.recipe.schema.stage import Stage

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_in_step_with_the_schema(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-goldens"):
        PAGE.write_text(markdown(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_every_key_is_described() -> None:
    def undescribed(model: type[BaseModel]) -> list[str]:
        missing = [name for name, info in model.model_fields.items() if not info.description]
        inner = [section_of(info.annotation) for info in model.model_fields.values()]
        return missing + [name for section in inner if section for name in undescribed(section)]

    assert not undescribed(Stage)
