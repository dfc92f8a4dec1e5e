"""From a recipe's sections to the plain dataclasses of the contract with the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclm.core.spec import (
    PROMPT_TASKS,
    BatchSpec,
    CheckpointSpec,
    EarlyStoppingSpec,
    GenerationSpec,
    OptimSpec,
    ParallelSpec,
    ProgramSpec,
    PromptData,
    PromptSpec,
    RecomputeSpec,
    RecoverySpec,
    TextData,
    TrainerSpec,
)
from hpclm.planning.plan import ContainerPlan, MountPlan, ResourcePlan
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology

if TYPE_CHECKING:
    from hpclm.recipe.schema.training_sections import Recompute

# NeMo's default for data.max_seq_length.
DEFAULT_SEQ_LENGTH = 1024


def resources(stage: StageContext) -> ResourcePlan:
    """What the job asks for."""
    wanted = stage.recipe.resources
    return ResourcePlan(
        nodes=wanted.nodes,
        devices_per_node=wanted.devices_per_node,
        device=wanted.device,
        time_limit_min=wanted.time_limit_min,
        memory_gib=wanted.memory_gib,
        cpus_per_device=wanted.cpus_per_device,
        job_time_limit_min=wanted.job_time_limit_min,
    )


def recovery(stage: StageContext) -> RecoverySpec:
    """What is done about failures."""
    return RecoverySpec(**stage.recipe.recovery.model_dump())


def container(stage: StageContext) -> ContainerPlan | None:
    """The image and what enters it."""
    wanted = stage.recipe.container
    if wanted is None:
        return None
    mounts = tuple(MountPlan(mount.source, mount.target, mount.read_only) for mount in wanted.mounts)
    return ContainerPlan(
        wanted.image,
        mounts,
        wanted.workdir,
        dict(wanted.environment),
        runtime=wanted.runtime,
        writable=wanted.writable,
        home=wanted.home,
    )


def parallel_spec(topology: Topology, sequence: bool) -> ParallelSpec:
    """The split as the ranks read it."""
    return ParallelSpec(
        tensor=topology.tensor,
        pipeline=topology.pipeline,
        data=topology.data,
        world_size=topology.world_size,
        nodes=topology.nodes,
        devices_per_node=topology.devices_per_node,
        sequence_parallel=sequence,
    )


def program(stage: StageContext) -> ProgramSpec | None:
    """The user's program, as written."""
    wanted = stage.recipe.program
    if wanted is None:
        return None
    return ProgramSpec(
        argv=list(wanted.argv),
        launcher=wanted.launcher,
        environment=dict(wanted.environment),
        workdir=wanted.workdir,
        outputs=list(wanted.outputs),
        progress=wanted.progress,
        retry_exit_codes=list(wanted.retry_exit_codes),
    )


def precision(stage: StageContext) -> str:
    """The trainer's, fp32 where there is none."""
    return stage.recipe.trainer.precision if stage.recipe.trainer else "fp32"


def batch(stage: StageContext, data_parallel: int, accumulation: int | None) -> BatchSpec | None:
    """Samples a step; for evaluate one generation batch a rank."""
    if stage.recipe.task == "evaluate":
        size = generation(stage).batch_size
        return BatchSpec(size * data_parallel, size, 1)
    written = stage.recipe.batch
    if written is None or accumulation is None:
        return None
    return BatchSpec(written.global_size, written.micro_size, accumulation)


def trainer(stage: StageContext) -> TrainerSpec:
    """How long and how exactly. Evaluate takes no steps: neither max_steps nor max_epochs is set."""
    written = stage.recipe.trainer
    if written is None:
        return TrainerSpec("fp32")
    training, stopping = stage.recipe.task != "evaluate", written.early_stopping
    return TrainerSpec(
        precision=written.precision,
        max_steps=written.max_steps if training else None,
        max_epochs=written.max_epochs if training else None,
        val_check_interval=written.val_check_interval,
        val_batches=written.val_batches,
        val_metrics=list(written.val_metrics),
        val_metric_rows=written.val_metric_rows,
        early_stopping=EarlyStoppingSpec(**stopping.model_dump()) if stopping and training else None,
        recompute=_recompute(written.recompute) if written.recompute and training else None,
        gradient_clip_norm=written.gradient_clip_norm,
        log_interval_steps=written.log_interval_steps,
        seed=written.seed,
    )


def _recompute(written: Recompute) -> RecomputeSpec:
    layers = None if written.granularity == "selective" else written.num_layers or 1
    return RecomputeSpec(written.granularity, written.method, layers)


def optim(stage: StageContext) -> OptimSpec:
    """AdamW and its schedule (evaluate has neither: lr 0)."""
    written = stage.recipe.optim
    if written is None:
        return OptimSpec(lr=0.0)
    return OptimSpec(
        lr=written.lr,
        min_lr=written.min_lr,
        weight_decay=written.weight_decay,
        beta1=written.betas[0],
        beta2=written.betas[1],
        epsilon=written.epsilon,
        schedule=written.schedule.name,
        warmup_steps=written.schedule.warmup_steps,
        constant_steps=written.schedule.constant_steps,
    )


def checkpoint(stage: StageContext) -> CheckpointSpec:
    """When to save."""
    written = stage.recipe.checkpoint
    return CheckpointSpec(written.save_interval_steps, written.keep_last, written.keep_best)


def text(stage: StageContext) -> TextData | None:
    """Text to pre-train on."""
    written = stage.recipe.text
    if written is None or stage.recipe.task != "pretrain":
        return None
    return TextData(
        paths=list(written.paths),
        pattern=written.pattern,
        document=written.document,
        seq_length=written.seq_length,
        validation_fraction=written.validation_fraction,
        max_mib=written.max_mib,
    )


def data(owner: StageContext, positions: int | None) -> PromptData | None:
    """The rows of the stage that wrote them. `positions`: the model's, which bounds the default length."""
    written = owner.recipe.data
    if written is None:
        return None
    length = written.max_seq_length or min(DEFAULT_SEQ_LENGTH, positions or DEFAULT_SEQ_LENGTH)
    return PromptData(
        train=list(written.train),
        validation=list(written.validation),
        test=list(written.test),
        max_seq_length=length,
        min_seq_length=written.min_seq_length,
        semantics=written.semantics,
        add_bos=written.add_bos,
        add_eos=written.add_eos,
    )


def prompt(stage: StageContext) -> PromptSpec | None:
    """The trainable part of prompt learning."""
    if stage.recipe.task not in PROMPT_TASKS:
        return None
    written = stage.recipe.prompt
    if written is None:
        return PromptSpec()
    return PromptSpec(
        encoder=written.encoder,
        encoder_hidden=written.encoder_hidden,
        encoder_layers=written.encoder_layers,
        encoder_dropout=written.encoder_dropout,
        encoder_init_std=written.encoder_init_std,
    )


def generation(stage: StageContext) -> GenerationSpec:
    """How answers are made; drawn with the trainer's seed."""
    written = stage.recipe.generation
    seed = stage.recipe.trainer.seed if stage.recipe.trainer else GenerationSpec().seed
    if written is None:
        return GenerationSpec(seed=seed)
    return GenerationSpec(
        max_new_tokens=written.max_new_tokens,
        min_new_tokens=written.min_new_tokens,
        greedy=written.greedy,
        temperature=written.temperature,
        top_k=written.top_k,
        top_p=written.top_p,
        repetition_penalty=written.repetition_penalty,
        end_strings=list(written.end_strings),
        add_bos=written.add_bos,
        batch_size=written.batch_size,
        seed=seed,
    )
