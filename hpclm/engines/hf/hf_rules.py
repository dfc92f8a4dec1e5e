"""What a stage of engine hf must keep to, whatever its model: precision, sharding, optimizer, method."""

from __future__ import annotations

from hpclm.core.fine_tune_spec import HuggingFaceSpec, MethodSpec, ShardingSpec
from hpclm.core.nearest import divisors
from hpclm.engines.hf.memory import TABLES
from hpclm.planning import lowering, parallel_rules, rules
from hpclm.planning.stage_context import StageContext

# Packages of optimizers that are not torch's.
PACKAGES = {"lion": "lion_pytorch", "adamw-8bit": "bitsandbytes"}


def check(
    stage: StageContext,
    method: MethodSpec,
    sharding: ShardingSpec,
    huggingface: HuggingFaceSpec,
    world_size: int,
) -> None:
    """Adds a finding for everything that is wrong."""
    _split(stage)
    _not_here(stage)
    _precision(stage, sharding)
    if huggingface.attention.startswith("flash_attention") and stage.recipe.resources.device == "cpu":
        what = f"{huggingface.attention} has no CPU kernels; choose documents, or sdpa"
        stage.error(
            ("huggingface", "attention"), what, "attention on the device", huggingface.attention, ("documents",)
        )
    if stage.task.trains:
        _sharding(stage, sharding, world_size)
        _optimizer(stage, sharding)
        _method(stage, method, sharding)
        if huggingface.quantization != "none":
            _quantization(stage, method, sharding, huggingface.quantization)


def _split(stage: StageContext) -> None:
    parallel = stage.recipe.parallel
    for key, degree in (("tensor", parallel.tensor), ("pipeline", parallel.pipeline)):
        if degree > 1:
            what = f"{degree}: engine hf divides by sharding.strategy (fsdp, zero3), not by layers; choose 1"
            stage.error(("parallel", key), what, "engine hf's split", degree, (1,))
    if parallel.sequence:
        stage.error(
            ("parallel", "sequence"), "is for tensor parallelism; choose false", "engine hf's split", True, (False,)
        )
    parallel_rules.only_plain(stage, who="engine hf")


def _not_here(stage: StageContext) -> None:
    """Keys of shared sections that this engine does not have."""
    recipe, trainer = stage.recipe, stage.recipe.trainer
    wrong: list[tuple[tuple[str, ...], str]] = []
    if trainer is not None and stage.task.trains:
        if trainer.recompute is not None:
            wrong.append((("trainer", "recompute"), "is engine megatron's; use sharding.checkpointing: true"))
        if trainer.train_samples is not None:
            wrong.append((("trainer", "train_samples"), "is engine megatron's; give max_steps or max_epochs"))
        if trainer.val_metrics:
            wrong.append(
                (("trainer", "val_metrics"), "is engine megatron's; add an evaluate stage with instructions.test")
            )
    if recipe.batch is not None and recipe.batch.rampup is not None:
        wrong.append((("batch", "rampup"), "is engine megatron's; leave it out"))
    if recipe.prompts is not None and stage.task.answers:
        wrong.append((("prompts",), "is for prompt learning by engine megatron; name the tuned stage by base"))
    for section in ("data", "task_templates"):
        if section in stage.loaded.own and getattr(recipe, section) is not None:
            wrong.append(((section,), "is engine megatron's; rows of engine hf are in instructions"))
    if stage.loaded.wrote("tokenizer"):
        wrong.append((("tokenizer",), "is not read by engine hf, which takes the model's own; leave it out"))
    for keys, message in wrong:
        stage.error(keys, message, "engine hf's keys")


def _precision(stage: StageContext, sharding: ShardingSpec) -> None:
    name, device = lowering.precision(stage), stage.recipe.resources.device
    keys = ("trainer", "precision")
    if device == "cpu" and name in ("fp16", "tf32"):
        stage.error(
            keys, f"{name} runs on GPUs; on device cpu choose fp32 or bf16", "cpu's precision", name, ("fp32", "bf16")
        )
    if device == "gpu" and name == "bf16":
        stage.info(keys, "bf16 needs GPUs of compute capability 8.0 (A100) or later", "bf16", name)
    if sharding.strategy.startswith("zero") and name == "tf32":
        stage.info(keys, "DeepSpeed keeps fp32 weights, and products are computed in tf32", "tf32", name)


def _sharding(stage: StageContext, sharding: ShardingSpec, world_size: int) -> None:
    strategy, offload = sharding.strategy, sharding.offload
    zero = strategy.startswith("zero")
    allowed = {"none": True, "optimizer": zero, "all": strategy in ("fsdp", "zero3")}
    if not allowed[offload]:
        fitting = [name for name, fits in allowed.items() if fits]
        what = f"{offload} is not for strategy {strategy}; choose {' or '.join(fitting)}"
        stage.error(("sharding", "offload"), what, "strategy's offload", offload, fitting)
    if sharding.nvme is not None and (strategy != "zero3" or offload == "none"):
        what = "needs strategy: zero3, and offload: optimizer or all; add them, or leave it out"
        stage.error(("sharding", "nvme"), what, "nvme is for zero3")
    size = sharding.group_size
    if size is not None and strategy != "fsdp":
        stage.error(
            ("sharding", "group_size"), f"is for strategy: fsdp, not {strategy}; leave it out", "hybrid is fsdp's"
        )
    elif size is not None and world_size % size:
        choices = [one for one in divisors(world_size) if one > 1]
        what = f"{size} does not divide the {world_size} ranks; choose {' or '.join(map(str, choices))}"
        stage.error(("sharding", "group_size"), what, "ranks % group_size == 0", size, choices)
    recipe = stage.recipe
    if size is not None and not world_size % size and size > 1 and recipe.resources.devices_per_node % size:
        what = f"{size} ranks reach over nodes of {recipe.resources.devices_per_node} devices, which is slow"
        stage.warning(("sharding", "group_size"), what, "group within one node", size)
    if world_size == 1 and strategy != "ddp":
        what = f"{strategy} divides nothing on a single rank" + (
            "" if offload != "none" else "; ddp is the same, faster"
        )
        stage.info(("sharding", "strategy"), what, "one rank", strategy)


def _optimizer(stage: StageContext, sharding: ShardingSpec) -> None:
    optim = stage.recipe.optim
    if optim is None:
        return
    if optim.name == "adamw-8bit" and (stage.recipe.resources.device == "cpu" or sharding.strategy != "ddp"):
        what = "adamw-8bit (bitsandbytes) needs GPUs and sharding.strategy: ddp; choose adamw"
        stage.error(("optim", "name"), what, "optimizer under sharding", optim.name, ("adamw",))
    if optim.offload:
        rules.no_offload(stage, "is engine megatron's; engine hf has sharding.offload: optimizer instead")


def _method(stage: StageContext, method: MethodSpec, sharding: ShardingSpec) -> None:
    for section, methods in (("lora", ("lora",)), ("virtual_tokens", ("p-tuning", "prompt-tuning"))):
        if method.method not in methods and stage.loaded.wrote("fine_tune", section):
            what = f"is for method {' and '.join(methods)}, not {method.method}; leave it out"
            stage.error(("fine_tune", section), what, "method's section")
    if method.method not in ("full", "lora") and sharding.strategy.startswith("zero"):
        what = f"{method.method} trains too little for ZeRO to divide; choose sharding.strategy: ddp or fsdp"
        stage.error(("sharding", "strategy"), what, "method under sharding", sharding.strategy, ("ddp", "fsdp"))


def _quantization(stage: StageContext, method: MethodSpec, sharding: ShardingSpec, kind: str) -> None:
    keys, rule = ("huggingface", "quantization"), "quantisation of frozen layers"
    if method.method != "lora":
        what = f"{kind} is for fine_tune.method lora, whose model is frozen, not {method.method}; choose none or lora"
        stage.error(keys, what, rule, kind, ("none",))
    elif sharding.strategy not in ("ddp", "fsdp"):
        what = (
            f"{kind}'s weights cannot be divided by {sharding.strategy}; choose sharding.strategy: ddp or fsdp, or none"
        )
        stage.error(keys, what, rule, kind, ("none",))
    for number, name in enumerate(method.lora.modules_to_save if method.method == "lora" else ()):
        if name.rpartition(".")[2] not in TABLES:
            what = f"{name} would be trained whole, and is in 4 bits; only {', '.join(TABLES)} are not"
            stage.error(("fine_tune", "lora", "modules_to_save", number), what, rule, name)
