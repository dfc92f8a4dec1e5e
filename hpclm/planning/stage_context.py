"""The context of every check of a stage: the stage, where its keys were written, and the collector of findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpclm.core.findings import Findings
from hpclm.planning.task import Task, task_named

if TYPE_CHECKING:
    from hpclm.recipe.loading import LoadedStage
    from hpclm.recipe.schema.stage import Stage


@dataclass(frozen=True)
class StageContext:
    """The stage being checked. `files`: whether checks may read the files that the recipe names."""

    loaded: LoadedStage
    findings: Findings
    files: bool

    @property
    def recipe(self) -> Stage:
        return self.loaded.recipe

    @property
    def task(self) -> Task:
        return task_named(self.recipe.task)

    def where(self, *keys: str | int) -> str:
        return self.loaded.where(*keys)

    def error(
        self, keys: tuple[str | int, ...], message: str, rule: str, value: object = None, choices: Iterable[object] = ()
    ) -> None:
        self.findings.error(self.where(*keys), message, rule, value, choices)

    def warning(
        self, keys: tuple[str | int, ...], message: str, rule: str, value: object = None, choices: Iterable[object] = ()
    ) -> None:
        self.findings.warning(self.where(*keys), message, rule, value, choices)

    def info(self, keys: tuple[str | int, ...], message: str, rule: str, value: object = None) -> None:
        self.findings.info(self.where(*keys), message, rule, value)

    def needs(self, keys: tuple[str | int, ...], content: str) -> None:
        """An error for a missing section that the task needs. `content`: what to write."""
        self.error(keys, f"is missing, and {self.recipe.task} needs it; add it with {content}", "needed section")
