"""The interface of an engine: its tasks, its own section of the recipe, and how it plans a stage.

To add one: an object with these attributes and methods, and an entry `name = "module:OBJECT"` in the group
`hpclm.engines`. What its ranks run is named by the spec it makes (`runner`), so nothing else has to be changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hpclm.core.registries import ENGINES
from hpclm.planning.base_model import BaseModel, Earlier
from hpclm.planning.input_checks import InputChecks
from hpclm.planning.plan import StagePlan
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.schema.base import Section


@dataclass(frozen=True)
class StageRequest:
    """A stage to plan.

    Attributes:
        earlier: stages before it, by name, whose outputs it may use.
        names: of all stages of the recipe, in order.
        checks: reads input files, each once per plan.
    """

    stage: StageContext
    earlier: Mapping[str, Earlier]
    names: list[str]
    checks: InputChecks


@runtime_checkable
class Engine(Protocol):
    """An engine, which trains and generates. Plain attributes will do.

    Attributes:
        tasks: the names of its tasks.
        packages: that its ranks' interpreter must have.
        own_sections: sections that it adds to recipes: the model and its description.

    It may have a `tracer`, the name of a module for `planning.tracing`.
    """

    @property
    def name(self) -> str: ...
    @property
    def tasks(self) -> tuple[str, ...]: ...
    @property
    def packages(self) -> tuple[str, ...]: ...
    @property
    def own_sections(self) -> Mapping[str, tuple[type[Section], str]]: ...

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        """The stage's plan, and what later stages may use. Everything wrong becomes a finding of the stage."""


def engine_named(name: str) -> Engine:
    """The engine of that name. Raises UnknownNameError."""
    return ENGINES.get(name)
