"""A stage: what one job does. A recipe with a `task` is one stage; one with `stages` has several."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, create_model, model_validator

from hpclm.core.registries import ENGINES, TASKS
from hpclm.recipe.schema.base import Name, Section, absolute_path, one_line, plain_name, registered
from hpclm.recipe.schema.container_section import Container
from hpclm.recipe.schema.data_sections import Data, Generation, Indexed, Prompt, TaskTemplate, Text
from hpclm.recipe.schema.model_section import Model
from hpclm.recipe.schema.recovery_section import Recovery
from hpclm.recipe.schema.resource_sections import Parallel, Resources
from hpclm.recipe.schema.tokenizer_section import Tokenizer
from hpclm.recipe.schema.tracking_sections import Tracking
from hpclm.recipe.schema.training_sections import Batch, Checkpointing, Optim, Trainer

VERSION = 1

S = TypeVar("S", bound=Section)


def _stage_or_path(text: str, info: ValidationInfo) -> str:
    """A stage's name stays a name; text with a `/` is a path."""
    one_line(text)
    return absolute_path(text, info) if "/" in text else plain_name(text)


class Stage(Section):
    """One job, with everything it inherited from the recipe's top level."""

    name: Name = Field(description="folder and job name of the stage")
    task: registered(TASKS) = Field(description="what the stage does")  # type: ignore[valid-type]
    engine: registered(ENGINES) = Field(  # type: ignore[valid-type]
        default="megatron",
        description="one of megatron (hpclm's own, on megatron-core), nemo (prompt learning by NeMo's scripts), "
        "megatron-lm (pretrain by its script), command (program), corpus (tokenize), hf "
        "(Hugging Face models: prepare-rows, fine-tune, evaluate); not needed where one engine alone has the task",
    )
    after: tuple[Name, ...] = Field(
        default=(), description="program, tokenize: earlier stages that must be complete first"
    )
    base: Name | None = Field(default=None, description="earlier pretrain stage whose model and tokenizer are used")
    prompts: Annotated[str, AfterValidator(_stage_or_path)] | None = Field(
        default=None,
        description="an earlier prompt-learning stage, or a path (with a /) to its checkpoints. evaluate: left out, "
        "the model answers alone; p-tuning and prompt-tuning: new tasks are added to its tasks, which stay frozen",
    )
    model: Model | None = Field(default=None, description="architecture or checkpoint")
    tokenizer: Tokenizer | None = Field(default=None, description="left out: the base checkpoint's")
    parallel: Parallel = Field(default=Parallel(), description="how the model is split")
    resources: Resources = Field(default=Resources(), description="what it runs on")
    recovery: Recovery = Field(default=Recovery(), description="what happens after a failure")
    container: Container | None = Field(default=None, description="left out: no container")
    batch: Batch | None = Field(default=None, description="needed to train")
    trainer: Trainer | None = Field(default=None, description="needed to train")
    optim: Optim | None = Field(default=None, description="needed to train")
    checkpoint: Checkpointing = Field(default=Checkpointing(), description="saving")
    tracking: Tracking = Field(default=Tracking(), description="metrics for other tools")
    text: Text | None = Field(default=None, description="pretrain needs this or indexed")
    indexed: Indexed | None = Field(default=None, description="pretrain: data that is already tokenised")
    data: Data | None = Field(
        default=None, description="needed by the other tasks; evaluate may inherit it from its prompts stage"
    )
    task_templates: tuple[TaskTemplate, ...] | None = Field(
        default=None, description="needed by the other tasks; evaluate may inherit them from its prompts stage"
    )
    prompt: Prompt | None = Field(default=None, description="p-tuning's encoder")
    generation: Generation | None = Field(default=None, description="evaluate's")

    @model_validator(mode="before")
    @classmethod
    def _only_engine(cls, values: Any) -> Any:
        """A task that one engine alone has needs no `engine`."""
        task = values.get("task") if isinstance(values, dict) else None
        if not isinstance(task, str) or values.get("engine") is not None:
            return values
        default = ENGINES.get(cls.model_fields["engine"].default)
        able = [] if task in default.tasks else [name for name, one in ENGINES.items() if task in one.tasks]
        return {**values, "engine": able[0]} if len(able) == 1 else values

    def own_section(self, name: str, model: type[S]) -> S | None:
        """A section that an engine or a task has added, None where it is not written."""
        found = getattr(self, name, None)
        assert found is None or isinstance(found, model)
        return found


@lru_cache(maxsize=1)
def stage_model() -> type[Stage]:
    """A stage with the sections of every engine and task, other packages' included."""
    added: dict[str, Any] = {}
    for registry in (ENGINES, TASKS):
        for _, entry in registry.items():
            for name, (section, description) in entry.own_sections.items():
                added[name] = (section | None, Field(default=None, description=description))
    model: type[Stage] = create_model("Stage", __base__=Stage, **added)
    return model


@lru_cache(maxsize=1)
def section_names() -> frozenset[str]:
    """The keys of a stage that are shared by all stages if they are at the recipe's top level."""
    return frozenset(stage_model().model_fields) - {"name", "task", "base", "prompts", "engine", "after"}
