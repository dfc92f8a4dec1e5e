"""Megatron-LM's pretrain_gpt.py as an external program: its flags, from the sections of a recipe.

Source: NVIDIA/Megatron-LM core_r0.12 to core_r0.16, megatron/training/arguments.py. What has no flag is refused by
`support`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpclm.core.layout import StagePaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import IndexedData, ModelSpec, ProgramSpec
from hpclm.engines.megatron_lm.section import Megatron
from hpclm.planning import lowering
from hpclm.planning.stage_context import StageContext

TENSORBOARD = "tensorboard"
# As Megatron-LM's logger prints a step.
PROGRESS = r"iteration +(?P<step>\d+)/ *(?P<total_steps>\d+) .*lm loss: (?P<loss>[-+0-9.eE]+)"
# Each divides the weights over data-parallel ranks, and asserts that CUDA_DEVICE_MAX_CONNECTIONS is not 1.
FSDP = ("--use-torch-fsdp2", "--use-megatron-fsdp", "--use-custom-fsdp")
_STYLES = {"wsd": "WSD"}
# What --deterministic-mode asks for (validate_args, and the flag's own help).
_DETERMINISTIC = {
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def sample_length(model: ModelSpec, indexed: IndexedData | None) -> int:
    """Tokens of a sample; of data in the image they are as many as there are positions."""
    return indexed.seq_length if indexed else model.max_position_embeddings


def pretraining(stage: StageContext, split: ParallelSpec, model: ModelSpec, indexed: IndexedData | None) -> ProgramSpec:
    """pretrain_gpt.py for a pretrain stage."""
    megatron = stage.recipe.own_section("megatron", Megatron)
    assert megatron is not None
    flags = {
        "tensor-model-parallel-size": split.tensor,
        "pipeline-model-parallel-size": split.pipeline,
        **_stages(split),
        **_architecture(model),
        **_experts(split, model),
        "seq-length": sample_length(model, indexed),
        **_training(stage),
        **_schedule(stage),
        **_recompute(stage),
        **({"split": megatron.split} if indexed is None else _indexed(indexed)),
        "distributed-backend": "nccl" if stage.recipe.resources.device == "gpu" else "gloo",
        **tokenizer_flags(stage),
    }
    argv = ["python", "-u", _braces(megatron.script)]
    for name, value in flags.items():
        argv += [f"--{name}", _braces(str(value))]
    argv += ["--save", "{checkpoints}", "--load", "{checkpoints}"]
    argv += [*_rampup(stage), *_recomputed(stage), *_tensorboard(stage)]
    argv += [*_paths(megatron, indexed), *_switches(stage, split, model, indexed)]
    argv += map(_braces, megatron.arguments)
    return ProgramSpec(
        argv=argv,
        progress=PROGRESS,
        outputs=["checkpoints/latest_checkpointed_iteration.txt"],
        environment=_environment(stage, split, megatron.arguments),
    )


def _stages(split: ParallelSpec) -> dict[str, object]:
    """Contexts and pipeline stages, where they differ from Megatron-LM's defaults."""
    values = {
        "context-parallel-size": (split.context, 1),
        "num-virtual-stages-per-pipeline-rank": (split.virtual_pipeline, 1),
        "decoder-first-pipeline-num-layers": (split.first_stage_layers, None),
        "decoder-last-pipeline-num-layers": (split.last_stage_layers, None),
    }
    return {flag: value for flag, (value, default) in values.items() if value != default}


def _experts(split: ParallelSpec, model: ModelSpec) -> dict[str, object]:
    """A mixture of experts; nothing is dropped, and the weights of the chosen sum to 1."""
    if model.num_moe_experts is None:
        return {}
    found: dict[str, object] = {
        "num-experts": model.num_moe_experts,
        "moe-router-topk": model.moe_router_topk,
        "moe-router-load-balancing-type": "aux_loss",
        "moe-aux-loss-coeff": model.moe_aux_loss_coeff,
        "moe-token-dispatcher-type": "alltoall",
        "expert-model-parallel-size": split.expert,
    }
    if model.moe_z_loss_coeff:
        found["moe-z-loss-coeff"] = model.moe_z_loss_coeff
    if split.expert_tensor is not None:
        found["expert-tensor-parallel-size"] = split.expert_tensor
    return found


def _environment(stage: StageContext, split: ParallelSpec, words: Sequence[str]) -> dict[str, str]:
    """What Megatron-LM asserts of the environment, where the recipe does not say it."""
    trainer, container = stage.recipe.trainer, stage.recipe.container
    wanted = dict(_DETERMINISTIC) if trainer is not None and trainer.deterministic else {}
    divided = any(word.startswith(FSDP) for word in words)
    if (split.tensor > 1 or split.context > 1) and not divided and stage.recipe.resources.device == "gpu":
        wanted["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    own = {} if container is None else container.environment
    return {name: value for name, value in wanted.items() if name not in own}


def _architecture(model: ModelSpec) -> dict[str, object]:
    return {
        "num-layers": model.num_layers,
        "hidden-size": model.hidden_size,
        "ffn-hidden-size": model.ffn_hidden_size,
        "num-attention-heads": model.num_attention_heads,
        "kv-channels": model.kv_channels,
        "max-position-embeddings": model.max_position_embeddings,
        "position-embedding-type": "rope" if model.position_embedding == "rope" else "learned_absolute",
        "normalization": "RMSNorm" if model.normalization == "rmsnorm" else "LayerNorm",
        "norm-epsilon": model.layernorm_epsilon,
        "hidden-dropout": model.hidden_dropout,
        "attention-dropout": model.attention_dropout,
        "init-method-std": model.init_std,
        **_rotary(model),
    }


def _rotary(model: ModelSpec) -> dict[str, object]:
    """What differs from Megatron-LM's defaults."""
    values = {
        "rotary-base": (int(model.rotary_base), 10000),
        "rotary-percent": (model.rotary_percent, 1.0),
        "rotary-seq-len-interpolation-factor": (int(model.rotary_interpolation), 1),
        "rope-scaling-factor": (model.rotary_scaling_factor, None),
    }
    return {flag: value for flag, (value, default) in values.items() if value != default}


def _training(stage: StageContext) -> dict[str, object]:
    trainer, batch, optim = stage.recipe.trainer, stage.recipe.batch, stage.recipe.optim
    steps = lowering.max_steps(stage)
    assert trainer is not None
    assert steps is not None
    assert batch is not None
    assert optim is not None
    # the default, each epoch, is the end of the run: Megatron-LM knows no epochs
    interval = trainer.val_check_interval if isinstance(trainer.val_check_interval, int) else steps
    return {
        "micro-batch-size": batch.micro_size,
        "global-batch-size": batch.global_size,
        **({"train-iters": steps} if trainer.train_samples is None else {"train-samples": trainer.train_samples}),
        "lr": optim.lr,
        "min-lr": optim.min_lr,
        "weight-decay": optim.weight_decay,
        "adam-beta1": optim.betas[0],
        "adam-beta2": optim.betas[1],
        "adam-eps": optim.epsilon,
        "clip-grad": trainer.gradient_clip_norm,
        "seed": trainer.seed,
        "log-interval": trainer.log_interval_steps,
        "eval-interval": interval,
        "eval-iters": trainer.val_batches or 10,
        "save-interval": stage.recipe.checkpoint.save_interval_steps or interval,
    }


def _rampup(stage: StageContext) -> list[str]:
    """One flag with three values."""
    grows = stage.recipe.batch.rampup if stage.recipe.batch is not None else None
    return [] if grows is None else ["--rampup-batch-size", *map(str, (grows.start, grows.increment, grows.samples))]


def _recomputed(stage: StageContext) -> list[str]:
    """One flag with a value for each module."""
    wanted = lowering.trainer(stage).recompute
    return ["--recompute-modules", *wanted.modules] if wanted is not None and wanted.modules else []


def _tensorboard(stage: StageContext) -> list[str]:
    """Its own event files have more than the lines that hpclm reads."""
    folder = StagePaths(Path("{stage_dir}")).tracked(TENSORBOARD)
    return ["--tensorboard-dir", str(folder)] if stage.recipe.tracking.tensorboard else []


def _schedule(stage: StageContext) -> dict[str, object]:
    """The decay ends where the constant steps begin."""
    trainer, spec = stage.recipe.trainer, lowering.optim(stage)
    assert trainer is not None
    counted, length = lowering.schedule_length(stage, trainer.max_steps)
    assert length is not None
    unit = "samples" if counted == "samples" else "iters"
    constant = spec.constant(length)
    found: dict[str, object] = {"lr-decay-style": _STYLES.get(spec.schedule, spec.schedule)}
    if constant:
        found[f"lr-decay-{unit}"] = length - constant
    # counted: --lr-warmup-fraction is a share of what is not constant, warmup_ratio one of the whole run
    found[f"lr-warmup-{unit}"] = spec.warmup(length)
    if spec.schedule == "wsd":
        found |= {"lr-wsd-decay-style": spec.anneal, f"lr-wsd-decay-{unit}": spec.anneal_steps}
    return found


def _recompute(stage: StageContext) -> dict[str, object]:
    wanted = lowering.trainer(stage).recompute
    if wanted is None:
        return {}
    if wanted.method is None:
        return {"recompute-granularity": wanted.granularity}
    return {
        "recompute-granularity": wanted.granularity,
        "recompute-method": wanted.method,
        "recompute-num-layers": wanted.num_layers,
    }


def _indexed(source: IndexedData) -> dict[str, object]:
    found: dict[str, object] = {}
    if not source.validation:
        found["split"] = ",".join(f"{share:g}" for share in source.split)
    if source.cache is not None:
        found["data-cache-path"] = source.cache
    return found


def _paths(megatron: Megatron, source: IndexedData | None) -> list[str]:
    """Prefixes, each behind its weight where it has one."""
    if source is None:
        return ["--data-path", *map(_braces, megatron.data_path)]
    if not source.validation:
        return ["--data-path", *_weighted(source.paths, source.weights)]
    return [
        "--train-data-path",
        *_weighted(source.paths, source.weights),
        "--valid-data-path",
        *_weighted(source.validation, source.validation_weights),
    ]


def _weighted(paths: list[str], weights: list[float] | None) -> list[str]:
    if weights is None:
        return [_braces(path) for path in paths]
    return [word for weight, path in zip(weights, paths, strict=True) for word in (f"{weight:g}", _braces(path))]


def _switches(stage: StageContext, split: ParallelSpec, model: ModelSpec, source: IndexedData | None) -> list[str]:
    precision = stage.recipe.trainer.precision if stage.recipe.trainer else "fp32"
    grouped = model.num_query_groups != model.num_attention_heads
    chosen = {
        "--bf16": precision == "bf16",
        "--fp16": precision == "fp16",
        "--deterministic-mode": stage.recipe.trainer is not None and stage.recipe.trainer.deterministic,
        "--sequence-parallel": split.sequence_parallel,
        "--account-for-embedding-in-pipeline-split": split.account_for_embedding,
        "--account-for-loss-in-pipeline-split": split.account_for_loss,
        "--use-tp-pp-dp-mapping": split.order == "tp-cp-ep-pp-dp",
        "--use-distributed-optimizer": split.distributed_optimizer,
        "--overlap-grad-reduce": split.overlap,
        "--overlap-param-gather": split.overlap and split.distributed_optimizer,
        "--moe-router-pre-softmax": model.num_moe_experts is not None and model.moe_router_topk == 1,
        "--swiglu": model.activation == "swiglu",
        "--squared-relu": model.activation == "squared_relu",
        # the fused one is the tanh form, and there is none of squared ReLU
        "--no-bias-gelu-fusion": model.activation in ("gelu_exact", "squared_relu"),
        "--apply-layernorm-1p": model.normalization == "layernorm1p",
        "--disable-bias-linear": not model.add_bias_linear,
        "--add-qkv-bias": model.add_qkv_bias,
        "--qk-layernorm": model.qk_norm,
        "--use-rope-scaling": model.rotary_scaling_factor is not None,
        "--untie-embeddings-and-output-weights": not model.tie_embeddings,
        "--reset-position-ids": source is not None and source.reset_positions,
        "--reset-attention-mask": source is not None and source.reset_attention,
        "--eod-mask-loss": source is not None and source.mask_end_loss,
    }
    groups = ["--group-query-attention", "--num-query-groups", str(model.num_query_groups)] if grouped else []
    return [*(flag for flag, wanted in chosen.items() if wanted), *groups]


def tokenizer_flags(stage: StageContext) -> dict[str, str]:
    """Of the recipe's tokenizer; none where `megatron.arguments` give it."""
    written = stage.recipe.tokenizer
    if written is not None and written.vocab_file and written.merges_file:
        return {
            "tokenizer-type": "GPT2BPETokenizer",
            "vocab-file": written.vocab_file,
            "merge-file": written.merges_file,
        }
    if written is not None and written.tokenizer_file and written.tokenizer_file.endswith(".model"):
        return {"tokenizer-type": "GPTSentencePieceTokenizer", "tokenizer-model": written.tokenizer_file}
    return {}


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
