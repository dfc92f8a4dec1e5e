"""The interface of a task: what it needs in a recipe, what it reads and what it writes.

To add one: an object of `Task`, and an entry `name = "module:OBJECT"` in the group `hpclm.tasks`; then an engine that
has it among its `tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hpclm.core.registries import TASKS

if TYPE_CHECKING:
    from hpclm.planning.stage_context import StageContext
    from hpclm.recipe.schema.base import Section

Role = Literal["train", "validation", "test"]

# Sections of every task.
COMMON_SECTIONS = frozenset({"model", "tokenizer", "parallel", "resources", "container", "trainer", "recovery"})
TRAINING_SECTIONS = COMMON_SECTIONS | {"batch", "optim", "checkpoint", "tracking"}
# Sections that training needs, and an example of what to write.
TRAINING_NEEDS = {"batch": "global, micro", "trainer": "max_steps or max_epochs", "optim": "lr"}


def _no_check(stage: StageContext) -> None:
    """No further checks."""


@dataclass(frozen=True)
class Task:
    """A task of a stage.

    Attributes:
        sections: sections of a recipe that it reads; others give a warning.
        needs: required sections, each with an example.
        trains: whether it takes optimizer steps and saves checkpoints.
        starts_models: whether it may initialise new weights and train a tokenizer.
        learns_prompts: whether it trains virtual tokens of a frozen model.
        encodes_prompts: whether an encoder computes them (p-tuning).
        answers: whether it writes predictions and scores, which `collect` copies.
        takes_prompts: whether `prompts` may name trained ones.
        roles: the rows of `data` that it reads.
        compared_by: the metric that a sweep ranks its runs by.
        own_sections: sections that it adds to recipes: the model and its description.
        check: further checks of a stage.
    """

    name: str
    sections: frozenset[str]
    needs: Mapping[str, str] = field(default_factory=dict)
    trains: bool = False
    starts_models: bool = False
    learns_prompts: bool = False
    encodes_prompts: bool = False
    answers: bool = False
    takes_prompts: bool = False
    roles: tuple[Role, ...] = ()
    compared_by: str = "val_loss"
    own_sections: Mapping[str, tuple[type[Section], str]] = field(default_factory=dict)
    check: Callable[[StageContext], None] = _no_check

    @property
    def runs_model(self) -> bool:
        """Whether it computes with a model."""
        return self.trains or self.answers


def task_named(name: str) -> Task:
    """The task of that name. Raises UnknownNameError."""
    return TASKS.get(name)


def tasks_that(**what: bool) -> tuple[str, ...]:
    """Names of the tasks with these attributes: `tasks_that(learns_prompts=True)`."""
    return tuple(name for name, one in TASKS.items() if all(getattr(one, key) is value for key, value in what.items()))
