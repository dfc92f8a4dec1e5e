"""Lowering: from a recipe's sections to the spec that ranks read.

A key is declared in the schema and copied by its name (`core.records.taken`); values here are derived.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from hpclm.core.batch_schedule import BatchSchedule
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import taken
from hpclm.core.spec import (
    BatchSpec,
    CheckpointSpec,
    GenerationSpec,
    IndexedData,
    OptimSpec,
    PromptData,
    PromptSpec,
    RampupSpec,
    RecoverySpec,
    TextData,
    TrainerSpec,
)
from hpclm.planning.plan import ContainerPlan, ResourcePlan
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology

if TYPE_CHECKING:
    from hpclm.recipe.schema.resource_sections import Parallel
    from hpclm.recipe.schema.training_sections import Batch

# Tokens of an example, of a model whose positions are not known here.
DEFAULT_SEQ_LENGTH = 1024


def resources(stage: StageContext) -> ResourcePlan:
    """What the job requests."""
    return taken(ResourcePlan, stage.recipe.resources)


def recovery(stage: StageContext) -> RecoverySpec:
    """What is done after failures."""
    return taken(RecoverySpec, stage.recipe.recovery)


def container(stage: StageContext) -> ContainerPlan | None:
    """The image, its mounts and its environment."""
    wanted = stage.recipe.container
    return None if wanted is None else taken(ContainerPlan, wanted)


def device(stage: StageContext) -> Literal["cpu", "gpu"]:
    """What a rank runs on."""
    return "cpu" if stage.recipe.resources.device == "cpu" else "gpu"


def parallel_spec(topology: Topology, written: Parallel) -> ParallelSpec:
    """The split as the ranks read it."""
    return taken(
        ParallelSpec,
        written,
        data=topology.data,
        world_size=topology.world_size,
        nodes=topology.nodes,
        devices_per_node=topology.devices_per_node,
        sequence_parallel=written.sequence and topology.tensor > 1,
        account_for_embedding=written.account_for_embedding and topology.pipeline > 1,
        account_for_loss=written.account_for_loss and topology.pipeline > 1,
    )


def precision(stage: StageContext) -> str:
    """The trainer's, fp32 where there is none."""
    return stage.recipe.trainer.precision if stage.recipe.trainer else "fp32"


def batch(stage: StageContext, data_parallel: int, accumulation: int | None) -> BatchSpec | None:
    """Samples per step; for a task that answers, one generation batch per rank."""
    if stage.task.answers:
        size = generation(stage).batch_size
        return BatchSpec(size * data_parallel, size, 1)
    written = stage.recipe.batch
    if written is None or accumulation is None:
        return None
    return BatchSpec(written.global_size, written.micro_size, accumulation, _rampup(written))


def _rampup(written: Batch) -> RampupSpec | None:
    return None if written.rampup is None else taken(RampupSpec, written.rampup)


def max_steps(stage: StageContext) -> int | None:
    """As the recipe has it, or those of its `train_samples`."""
    written, sizes = stage.recipe.trainer, stage.recipe.batch
    if written is None or written.train_samples is None or sizes is None:
        return None if written is None else written.max_steps
    return BatchSchedule(sizes.global_size, _rampup(sizes)).steps(written.train_samples)


def schedule_length(stage: StageContext, total_steps: int | None) -> tuple[Literal["steps", "samples"], int | None]:
    """What the learning rate's schedule counts, and how many there are; `total_steps`: where it counts steps."""
    written = stage.recipe.trainer
    if written is not None and written.train_samples is not None:
        return "samples", written.train_samples
    return "steps", total_steps


def trainer(stage: StageContext) -> TrainerSpec:
    """Training length and precision. A task that does not train takes no steps: neither
    max_steps nor max_epochs is set."""
    written = stage.recipe.trainer
    if written is None:
        return TrainerSpec("fp32")
    spec = taken(TrainerSpec, written, max_steps=max_steps(stage))
    if not stage.task.trains:
        return replace(spec, max_steps=None, max_epochs=None, early_stopping=None, recompute=None)
    recompute = spec.recompute
    if recompute is not None and recompute.granularity == "full":
        return replace(spec, recompute=replace(recompute, num_layers=recompute.num_layers or 1))
    return spec


def optim(stage: StageContext) -> OptimSpec:
    """AdamW and its schedule; lr 0 if there is none."""
    written = stage.recipe.optim
    if written is None:
        return OptimSpec(lr=0.0)
    schedule = written.schedule
    return taken(
        OptimSpec,
        written,
        beta1=written.betas[0],
        beta2=written.betas[1],
        schedule=schedule.name,
        warmup_steps=schedule.warmup_samples or schedule.warmup_steps,
        constant_steps=schedule.constant_samples or schedule.constant_steps,
        warmup_ratio=schedule.warmup_ratio,
        constant_ratio=schedule.constant_ratio,
        from_zero=schedule.from_zero,
        anneal_steps=schedule.anneal_samples or schedule.anneal_steps,
        anneal=schedule.anneal,
    )


def checkpoint(stage: StageContext) -> CheckpointSpec:
    """When to save."""
    written = stage.recipe.checkpoint
    return taken(CheckpointSpec, written, keep_best=None if written.keep_best == "all" else written.keep_best)


def text(stage: StageContext) -> TextData | None:
    """Text to pre-train on."""
    written = stage.recipe.text
    return None if written is None or "text" not in stage.task.sections else taken(TextData, written)


def indexed(stage: StageContext) -> IndexedData | None:
    """Indexed data sets to pre-train on; weights of a single one say nothing."""
    written = stage.recipe.indexed
    if written is None or "indexed" not in stage.task.sections:
        return None
    found = taken(IndexedData, written)
    return replace(
        found,
        weights=found.weights if len(found.paths) > 1 else None,
        validation_weights=found.validation_weights if len(found.validation) > 1 else None,
    )


def data(owner: StageContext, positions: int | None) -> PromptData | None:
    """The rows of the stage that sets them. `positions`: the model's, which bounds the default length."""
    written = owner.recipe.data
    if written is None:
        return None
    length = written.max_seq_length or positions or DEFAULT_SEQ_LENGTH
    return taken(PromptData, written, max_seq_length=length)


def prompt(stage: StageContext) -> PromptSpec | None:
    """The trainable part of prompt learning."""
    if not stage.task.learns_prompts:
        return None
    written = stage.recipe.prompt
    return PromptSpec() if written is None else taken(PromptSpec, written)


def generation(stage: StageContext) -> GenerationSpec:
    """How answers are made; drawn with the trainer's seed."""
    written = stage.recipe.generation
    seed = stage.recipe.trainer.seed if stage.recipe.trainer else GenerationSpec().seed
    return GenerationSpec(seed=seed) if written is None else taken(GenerationSpec, written, seed=seed)
