"""What a tracker is told of a stage besides its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpclm.core.files import read_object
from hpclm.core.layout import RunPaths, StagePaths
from hpclm.core.secrets import masked, without_secrets
from hpclm.core.sweep_layout import SweepPaths
from hpclm.core.sweep_recipes import recipe_of


@dataclass(frozen=True)
class Curve:
    """One curve for each stage of a run, however often it is started.

    Attributes:
        options: the tracker's section of the recipe.
        config: the stage's part of the recipe, with every default and without secrets: the only configuration that a
            tracker may record.
        group: a name for the curves of all runs of this recipe: the recipe's.
    """

    run: str
    stage: str
    group: str = "hpclm"
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"


def curve_of(stage: StagePaths, options: Mapping[str, Any]) -> Curve:
    """The curve of a stage, from its run's folder."""
    run = RunPaths(stage.root.parent.parent)
    recipe = read_object(run.resolved) or recipe_of(SweepPaths(run.root.parent), run.name) or {}
    stages = [one for one in recipe.get("stages") or [] if isinstance(one, dict) and one.get("name") == stage.name]
    config = {**(stages[0] if stages else recipe), "recipe": recipe.get("name")}
    return Curve(run.name, stage.name, masked(str(recipe.get("name") or "hpclm")), options, without_secrets(config))


def numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row by the names that all trackers give them, `train/loss` for one."""
    for key, value in row.items():
        if key not in ("kind", "step", "time") and isinstance(value, float):
            yield f"{row['kind']}/{key}", value
