"""Megatron's divisibility rules, each a finding with value, rule and the nearest valid values.

Sources: Megatron-LM megatron/training/arguments.py (validate_args), megatron/core/transformer/transformer_config.py,
megatron/core/num_microbatches_calculator.py; for prompt learning NeMo r1.22's
megatron_gpt_prompt_learning_model.py and megatron_gpt_prompt_learning_eval.py.
"""

from __future__ import annotations

from hpclm.core.gpu_types import LARGEST_GIB
from hpclm.core.nearest import closest, divisors, either, multiples
from hpclm.core.spec import ModelSpec
from hpclm.planning import lowering
from hpclm.planning.memory_estimate import GIB
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology


def split_batch(stage: StageContext, topology: Topology | None) -> int | None:
    """GBS % (MBS·DP) == 0. Returns the gradient accumulation steps."""
    batch = stage.recipe.batch
    if batch is None or topology is None:
        return None
    step = batch.micro_size * topology.data
    if batch.global_size % step:
        choices = multiples(step, batch.global_size)
        micros = [m for m in divisors(batch.global_size) if batch.global_size % (m * topology.data) == 0]
        hint = f", or micro {either(closest(micros, batch.micro_size))}" if micros else ""
        stage.error(
            ("batch", "global"),
            f"{batch.global_size} is not a multiple of micro {batch.micro_size} × data parallel {topology.data} = "
            f"{step}; choose {either(choices)}{hint}",
            "global % (micro · data) == 0",
            batch.global_size,
            choices,
        )
        return None
    accumulation = batch.global_size // step
    if topology.pipeline > 1:
        chunks = stage.recipe.parallel.virtual_pipeline
        idle = (topology.pipeline - 1) / (accumulation * chunks + topology.pipeline - 1)
        stage.info(
            ("batch", "global"),
            f"{accumulation} micro-batches over {topology.pipeline} pipeline stages leave devices idle "
            f"{idle:.0%} of a step; use more micro-batches",
            "pipeline bubble",
            round(idle, 4),
        )
    return accumulation


def training_length(stage: StageContext, topology: Topology | None) -> None:
    """Lengths in samples, and a batch that grows: Megatron-LM's rules for both."""
    trainer, batch = stage.recipe.trainer, stage.recipe.batch
    samples = trainer.train_samples if trainer is not None else None
    schedule = stage.recipe.optim.schedule if stage.recipe.optim is not None else None
    wrong = [] if schedule is None else schedule.in_samples if samples is None else schedule.in_steps
    if wrong:
        other = wrong[0].replace("_samples", "_steps") if samples is None else wrong[0].replace("_steps", "_samples")
        what = f"goes with {'trainer.train_samples' if samples is None else 'max_steps or max_epochs'}; give {other}"
        stage.error(("optim", "schedule", wrong[0]), what, "one unit")
    if batch is None:
        return
    if samples is not None and samples < batch.global_size:
        what = f"{samples} are less than a step of {batch.global_size}; choose more"
        stage.error(("trainer", "train_samples"), what, "one step", samples, (batch.global_size,))
    grows = batch.rampup
    if grows is None:
        return
    if stage.recipe.text is not None or "indexed" not in stage.task.sections:
        stage.error(("batch", "rampup"), "is for pretrain on indexed data; leave it out", "rampup needs indexed")
    if samples is None or samples <= grows.samples + batch.global_size:
        least = grows.samples + batch.global_size + 1
        since = f"since the batch grows over {grows.samples} samples"
        what = f"must be {least} or more, {since}"
        if samples is None:
            what = f"is missing, {since}: give {least} or more, in place of steps or epochs"
        stage.error(("trainer", "train_samples"), what, "train_samples > rampup.samples", samples, (least,))
    step = 1 if topology is None else batch.micro_size * topology.data
    for key in ("start", "increment"):
        if getattr(grows, key) % step:
            choices = multiples(step, getattr(grows, key))
            what = (
                f"{getattr(grows, key)} is not a multiple of micro × data parallel = {step}; choose {either(choices)}"
            )
            stage.error(("batch", "rampup", key), what, "rampup % (micro · data) == 0", getattr(grows, key), choices)


def validated_by_loss(stage: StageContext) -> None:
    """Pre-training has no answers that could be scored."""
    trainer = stage.recipe.trainer
    if trainer is not None and (trainer.val_metrics or trainer.val_metric_rows):
        what = "has no effect: pre-training is validated by its loss; leave it out"
        stage.warning(("trainer", "val_metrics"), what, "metrics of answers")


def adamw(stage: StageContext) -> None:
    """The one optimizer of engines other than hf."""
    optim = stage.recipe.optim
    if optim is not None and optim.name != "adamw":
        what = f"{optim.name} is for engine hf; engine {stage.recipe.engine} has adamw alone"
        stage.error(("optim", "name"), what, "engine's optimizer", optim.name, ("adamw",))
    if optim is not None and optim.offload and stage.task.trains and stage.recipe.task != "pretrain":
        no_offload(stage, f"is for pretrain, not {stage.recipe.task}; give it in the section optim of that stage alone")
    elif optim is not None and optim.offload and stage.task.trains and stage.recipe.engine != "megatron":
        no_offload(stage, f"is engine megatron's, not {stage.recipe.engine}'s; leave it out")


def no_offload(stage: StageContext, what: str) -> None:
    stage.error(("optim", "offload"), what, "optimizer that can be offloaded", True, (False,))


def learning_rate(stage: StageContext, total_steps: int | None) -> None:
    """min_lr ≤ lr; min_lr 0 for prompt learning over a pipeline; a schedule that fits the steps."""
    optim = stage.recipe.optim
    if optim is None:
        return
    if optim.min_lr > optim.lr:
        stage.error(
            ("optim", "min_lr"),
            f"{optim.min_lr:g} is greater than lr {optim.lr:g}; choose 0",
            "min_lr <= lr",
            optim.min_lr,
            (0.0,),
        )
    if stage.task.learns_prompts and stage.recipe.parallel.pipeline > 1 and optim.min_lr != 0:
        stage.error(
            ("optim", "min_lr"),
            f"{optim.min_lr:g} must be 0 for {stage.recipe.task} with pipeline {stage.recipe.parallel.pipeline} "
            "(ranks without prompts train nothing); choose 0",
            "pipeline > 1 needs min_lr 0 for prompt learning",
            optim.min_lr,
            (0.0,),
        )
    unit, counted = lowering.schedule_length(stage, total_steps)
    if counted is None:
        return
    spec = lowering.optim(stage)
    warmup, constant = spec.warmup(counted), spec.constant(counted)
    planned = warmup + constant + spec.anneal_steps
    if planned > counted:
        falling = f", {spec.anneal_steps} annealing" if spec.anneal_steps else ""
        stage.warning(
            ("optim", "schedule", f"warmup_{unit}"),
            f"{warmup} warm-up{falling} and {constant} constant {unit} are more than "
            f"the {counted} {unit} of the run; choose fewer",
            "warmup_steps + constant_steps <= steps",
            planned,
            (counted,),
        )
    elif counted and max(warmup, constant) >= counted:
        whole, last = ("warm-up", "reaches lr at the end") if warmup >= counted else ("constant", "stays at min_lr")
        stage.warning(
            ("optim", "schedule", f"warmup_{unit}" if warmup >= counted else f"constant_{unit}"),
            f"all {counted} {unit} of the run are {whole}, so the rate only {last}; choose fewer",
            "warm-up < steps, constant < steps",
            counted,
        )


def precision(stage: StageContext, name: str) -> None:
    """fp32 on CPU; bf16 needs compute capability 8.0."""
    device = stage.recipe.resources.device
    if device == "cpu" and name != "fp32":
        stage.error(
            ("trainer", "precision"),
            f"{name} runs on GPUs; on device cpu choose fp32",
            "cpu needs fp32",
            name,
            ("fp32",),
        )
    if device == "gpu" and name == "bf16":
        stage.info(("trainer", "precision"), "bf16 needs GPUs of compute capability 8.0 (A100) or later", "bf16", name)


def lengths(stage: StageContext, model: ModelSpec, seq_length: int | None, keys: tuple[str, ...]) -> None:
    """Sequences within the model's positions, and space for the answer."""
    positions = model.max_position_embeddings
    if seq_length is not None and seq_length > positions:
        stage.error(
            keys,
            f"{seq_length} exceeds the model's max_position_embeddings {positions}; choose {positions} or less",
            "sequence length <= max_position_embeddings",
            seq_length,
            (positions,),
        )
    generation = stage.recipe.generation
    if not stage.task.answers or generation is None:
        return
    if generation.max_new_tokens >= positions:
        stage.error(
            ("generation", "max_new_tokens"),
            f"{generation.max_new_tokens} leaves no room for a prompt in max_position_embeddings {positions}; "
            f"choose less than {positions}",
            "max_new_tokens < max_position_embeddings",
            generation.max_new_tokens,
            (positions - 1,),
        )


def prompt_encoder(stage: StageContext) -> None:
    """tpmlp is split over the tensor ranks; mlp needs its two outer layers; biglstm halves its width."""
    prompt, tensor = stage.recipe.prompt, stage.recipe.parallel.tensor
    if not stage.task.encodes_prompts:
        return
    hidden = prompt.encoder_hidden if prompt else 2048
    encoder = prompt.encoder if prompt else "tpmlp"
    if encoder == "tpmlp" and hidden % tensor:
        choices = multiples(tensor, hidden)
        stage.error(
            ("prompt", "encoder_hidden"),
            f"{hidden} is not a multiple of tensor {tensor}, over which tpmlp is split; choose {either(choices)}",
            "encoder_hidden % tensor == 0",
            hidden,
            choices,
        )
    if encoder == "biglstm" and hidden % 2:
        stage.error(
            ("prompt", "encoder_hidden"),
            f"{hidden} is odd, and each direction of biglstm takes half; choose {either([hidden - 1, hidden + 1])}",
            "encoder_hidden % 2 == 0",
            hidden,
            (hidden - 1, hidden + 1),
        )
    if prompt and encoder == "mlp" and prompt.encoder_layers < 2:
        stage.error(
            ("prompt", "encoder_layers"),
            "an mlp encoder needs at least 2 layers; choose 2",
            "mlp encoder_layers >= 2",
            prompt.encoder_layers,
            (2,),
        )


def device_memory(stage: StageContext, rank_bytes: int) -> None:
    """A rank that no GPU can hold. Of a known type of GPU the scheduler's or the node's check tells more."""
    largest = LARGEST_GIB * GIB
    if stage.recipe.resources.device != "gpu" or rank_bytes <= largest:
        return
    parallel = stage.recipe.parallel
    least = -(-rank_bytes * parallel.tensor * parallel.pipeline // largest)
    stage.error(
        ("parallel", "tensor"),
        f"a rank needs an estimated {rank_bytes / GIB:.0f} GiB, and no GPU has more than {LARGEST_GIB}; raise tensor "
        f"or pipeline (tensor · pipeline to {least} or more), or lower batch.micro",
        "memory estimate <= memory of a GPU",
        parallel.tensor,
    )


def staging_memory(stage: StageContext, total_bytes: int, offloaded: int = 0) -> None:
    """Asynchronous checkpoints are copied to the nodes' memory, each tensor on one rank.

    Args:
        total_bytes: of a checkpoint.
        offloaded: bytes that a node's memory has besides.
    """
    resources = stage.recipe.resources
    if not stage.recipe.checkpoint.asynchronous:
        return
    each = total_bytes / resources.nodes / GIB
    what = f"a checkpoint is copied to the nodes' memory, {each:.1f} GiB each (pinned blocks can take up to twice that)"
    where = ("checkpoint", "asynchronous")
    if resources.memory_gib is not None and resources.device == "gpu" and each + offloaded / GIB > resources.memory_gib:
        stage.warning(where, f"{what}; raise resources.memory_gib, or set it to false", "host memory", True, (False,))
    else:
        stage.info(where, what, "host memory", True)


def offloaded_memory(stage: StageContext, node_bytes: int) -> None:
    """What the optimizer's state takes of a node's memory beside GPUs."""
    resources = stage.recipe.resources
    if not node_bytes or resources.device == "cpu":
        return
    where = ("optim", "offload")
    what = f"the optimizer needs {node_bytes / GIB:.1f} GiB of each node's memory (pinned blocks can take half as "
    what += "much again)"
    if resources.memory_gib is not None and node_bytes > resources.memory_gib * GIB:
        stage.warning(where, f"{what}; raise resources.memory_gib, or set it to null", "host memory", True)
    else:
        stage.info(where, what, "host memory", True)


def host_memory(stage: StageContext, node_bytes: int) -> None:
    """On CPU the ranks use the job's own memory."""
    resources = stage.recipe.resources
    if resources.device == "cpu" and resources.memory_gib is not None and node_bytes > resources.memory_gib * GIB:
        needed = -(-node_bytes // GIB)
        stage.warning(
            ("resources", "memory_gib"),
            f"{resources.memory_gib} GiB per node, but its ranks need about {needed}; choose {needed} or more, "
            "or null for all",
            "memory estimate <= memory_gib",
            resources.memory_gib,
            (needed,),
        )
