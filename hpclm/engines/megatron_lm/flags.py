"""Megatron-LM's pretrain_gpt.py as an external program: its flags, from the sections of a recipe.

Source: NVIDIA/Megatron-LM core_r0.12 and later, megatron/training/arguments.py.
"""

from __future__ import annotations

from hpclm.core.spec import ModelSpec, ParallelSpec, ProgramSpec
from hpclm.engines.megatron_lm.section import Megatron
from hpclm.planning.stage_context import StageContext
from hpclm.recipe.schema.training_sections import Schedule

# As Megatron-LM's logger prints a step.
PROGRESS = r"iteration +(?P<step>\d+)/ *(?P<total_steps>\d+) .*lm loss: (?P<loss>[-+0-9.eE]+)"


def pretraining(stage: StageContext, split: ParallelSpec, model: ModelSpec) -> ProgramSpec:
    """pretrain_gpt.py for a pretrain stage."""
    megatron = stage.recipe.own_section("megatron", Megatron)
    assert megatron is not None
    flags = {
        "tensor-model-parallel-size": split.tensor,
        "pipeline-model-parallel-size": split.pipeline,
        **_architecture(stage, model),
        **_training(stage),
        "split": megatron.split,
        "distributed-backend": "nccl" if stage.recipe.resources.device == "gpu" else "gloo",
        **_tokenizer(stage),
    }
    argv = ["python", "-u", _braces(megatron.script)]
    for name, value in flags.items():
        argv += [f"--{name}", _braces(str(value))]
    argv += ["--save", "{checkpoints}", "--load", "{checkpoints}"]
    argv += ["--data-path", *map(_braces, megatron.data_path), *_switches(stage, split, model)]
    argv += map(_braces, megatron.arguments)
    return ProgramSpec(argv=argv, progress=PROGRESS, outputs=["checkpoints/latest_checkpointed_iteration.txt"])


def _architecture(stage: StageContext, model: ModelSpec) -> dict[str, object]:
    text = stage.recipe.text
    return {
        "num-layers": model.num_layers,
        "hidden-size": model.hidden_size,
        "ffn-hidden-size": model.ffn_hidden_size,
        "num-attention-heads": model.num_attention_heads,
        "kv-channels": model.kv_channels,
        "seq-length": text.seq_length if text else model.max_position_embeddings,
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
        "rotary-seq-len-interpolation-factor": (model.rotary_interpolation, 1.0),
    }
    return {flag: value for flag, (value, default) in values.items() if value != default}


def _training(stage: StageContext) -> dict[str, object]:
    trainer, batch, optim = stage.recipe.trainer, stage.recipe.batch, stage.recipe.optim
    assert trainer is not None
    assert trainer.max_steps is not None
    assert batch is not None
    assert optim is not None
    interval = trainer.val_check_interval if isinstance(trainer.val_check_interval, int) else trainer.max_steps
    return {
        "micro-batch-size": batch.micro_size,
        "global-batch-size": batch.global_size,
        "train-iters": trainer.max_steps,
        "lr": optim.lr,
        "min-lr": optim.min_lr,
        "lr-decay-style": optim.schedule.name,
        **_warmup(optim.schedule),
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


def _warmup(schedule: Schedule) -> dict[str, object]:
    if schedule.warmup_ratio is not None:
        return {"lr-warmup-fraction": schedule.warmup_ratio}
    return {"lr-warmup-iters": schedule.warmup_steps}


def _switches(stage: StageContext, split: ParallelSpec, model: ModelSpec) -> list[str]:
    precision = stage.recipe.trainer.precision if stage.recipe.trainer else "fp32"
    grouped = model.num_query_groups != model.num_attention_heads
    chosen = {
        "--bf16": precision == "bf16",
        "--fp16": precision == "fp16",
        "--deterministic-mode": stage.recipe.trainer is not None and stage.recipe.trainer.deterministic,
        "--sequence-parallel": split.sequence_parallel,
        "--swiglu": model.activation == "swiglu",
        "--squared-relu": model.activation == "squared_relu",
        "--no-bias-gelu-fusion": model.activation == "gelu_exact",
        "--apply-layernorm-1p": model.normalization == "layernorm1p",
        "--disable-bias-linear": not model.add_bias_linear,
        "--untie-embeddings-and-output-weights": not model.tie_embeddings,
    }
    groups = ["--group-query-attention", "--num-query-groups", str(model.num_query_groups)] if grouped else []
    return [*(flag for flag, wanted in chosen.items() if wanted), *groups]


def _tokenizer(stage: StageContext) -> dict[str, str]:
    written = stage.recipe.tokenizer
    if written is not None and written.vocab_file and written.merges_file:
        return {
            "tokenizer-type": "GPT2BPETokenizer",
            "vocab-file": written.vocab_file,
            "merge-file": written.merges_file,
        }
    return {}


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
