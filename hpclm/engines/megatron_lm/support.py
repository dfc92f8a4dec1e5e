"""What a recipe may say to the engine megatron-lm: every key is passed on or refused, and Megatron-LM's own checks
(megatron/training/arguments.py, validate_args) are made before the queue."""

from __future__ import annotations

from hpclm.core.nearest import either
from hpclm.core.spec import IndexedData, ModelSpec
from hpclm.engines.megatron_lm.arguments import flag_of
from hpclm.engines.megatron_lm.flags import sample_length, tokenizer_flags
from hpclm.engines.megatron_lm.section import Megatron
from hpclm.planning import indexed_checks, lowering, parallel_rules, rules
from hpclm.planning.stage_context import StageContext

_ACTIVATIONS = ("gelu", "gelu_exact", "squared_relu", "swiglu")
# Flags whose meaning is a recipe's key: given twice, the plan would be of another job.
_OF_KEYS = {
    "--tensor-model-parallel-size": "parallel.tensor",
    "--pipeline-model-parallel-size": "parallel.pipeline",
    "--sequence-parallel": "parallel.sequence",
    "--context-parallel-size": "parallel.context",
    "--num-layers-per-virtual-pipeline-stage": "parallel.virtual_pipeline",
    "--num-virtual-stages-per-pipeline-rank": "parallel.virtual_pipeline",
    "--decoder-first-pipeline-num-layers": "parallel.first_stage_layers",
    "--decoder-last-pipeline-num-layers": "parallel.last_stage_layers",
    "--account-for-embedding-in-pipeline-split": "parallel.account_for_embedding",
    "--account-for-loss-in-pipeline-split": "parallel.account_for_loss",
    "--use-distributed-optimizer": "parallel.distributed_optimizer",
    "--use-tp-pp-dp-mapping": "parallel.order",
    "--overlap-grad-reduce": "parallel.overlap",
    "--overlap-param-gather": "parallel.overlap",
    "--expert-model-parallel-size": "parallel.expert",
    "--expert-tensor-parallel-size": "parallel.expert_tensor",
    "--num-experts": "model.num_moe_experts",
    "--moe-router-topk": "model.moe_router_topk",
    "--moe-aux-loss-coeff": "model.moe_aux_loss_coeff",
    "--moe-z-loss-coeff": "model.moe_z_loss_coeff",
    "--num-layers": "model.num_layers",
    "--hidden-size": "model.hidden_size",
    "--ffn-hidden-size": "model.ffn_hidden_size",
    "--num-attention-heads": "model.num_attention_heads",
    "--num-query-groups": "model.num_query_groups",
    "--kv-channels": "model.kv_channels",
    "--seq-length": "indexed.seq_length",
    "--max-position-embeddings": "model.max_position_embeddings",
    "--micro-batch-size": "batch.micro",
    "--global-batch-size": "batch.global",
    "--train-iters": "trainer.max_steps",
    "--train-samples": "trainer.train_samples",
    "--tensorboard-dir": "tracking.tensorboard",
    "--rampup-batch-size": "batch.rampup",
    "--lr": "optim.lr",
    "--min-lr": "optim.min_lr",
    "--lr-decay-style": "optim.schedule.name",
    "--lr-warmup-iters": "optim.schedule.warmup_steps",
    "--lr-warmup-samples": "optim.schedule.warmup_samples",
    "--lr-warmup-fraction": "optim.schedule.warmup_ratio",
    "--weight-decay": "optim.weight_decay",
    "--clip-grad": "trainer.gradient_clip_norm",
    "--seed": "trainer.seed",
    "--bf16": "trainer.precision",
    "--fp16": "trainer.precision",
    "--eval-interval": "trainer.val_check_interval",
    "--eval-iters": "trainer.val_batches",
    "--save-interval": "checkpoint.save_interval_steps",
    "--recompute-granularity": "trainer.recompute",
    "--recompute-activations": "trainer.recompute",
    "--recompute-method": "trainer.recompute",
    "--recompute-num-layers": "trainer.recompute",
    "--recompute-modules": "trainer.recompute",
    "--data-path": "indexed.paths",
    "--split": "indexed.split",
    "--save": "(the stage's folder)",
    "--load": "(the stage's folder)",
    "--position-embedding-type": "model.position_embedding",
    "--rotary-base": "model.rotary_base",
    "--rotary-percent": "model.rotary_percent",
    "--rotary-seq-len-interpolation-factor": "model.rotary_interpolation",
    "--use-rope-scaling": "model.rotary_scaling_factor",
    "--rope-scaling-factor": "model.rotary_scaling_factor",
    "--normalization": "model.normalization",
    "--apply-layernorm-1p": "model.normalization",
    "--norm-epsilon": "model.layernorm_epsilon",
    "--swiglu": "model.activation",
    "--squared-relu": "model.activation",
    "--disable-bias-linear": "model.add_bias_linear",
    "--add-qkv-bias": "model.add_qkv_bias",
    "--qk-layernorm": "model.qk_norm",
    "--untie-embeddings-and-output-weights": "model.tie_embeddings",
    "--group-query-attention": "model.num_query_groups",
    "--hidden-dropout": "model.hidden_dropout",
    "--attention-dropout": "model.attention_dropout",
    "--init-method-std": "model.init_std",
    "--adam-beta1": "optim.betas",
    "--adam-beta2": "optim.betas",
    "--adam-eps": "optim.epsilon",
    "--lr-decay-iters": "optim.schedule.constant_steps",
    "--lr-decay-samples": "optim.schedule.constant_samples",
    "--lr-wsd-decay-style": "optim.schedule.anneal",
    "--lr-wsd-decay-iters": "optim.schedule.anneal_steps",
    "--lr-wsd-decay-samples": "optim.schedule.anneal_samples",
    "--log-interval": "trainer.log_interval_steps",
    "--deterministic-mode": "trainer.deterministic",
    "--distributed-backend": "resources.device",
}
# Other sources of data than the one that a recipe names.
_OF_DATA = {
    "--mock-data": "a recipe names its data",
    "--data-args-path": "give indexed.paths",
    "--per-split-data-args-path": "give indexed.paths and indexed.validation",
    "--train-data-path": "give indexed.paths",
    "--valid-data-path": "give indexed.validation",
    "--test-data-path": "give indexed.paths and split",
}
_OF_INDEXED = {
    "--data-cache-path": "indexed.cache",
    "--reset-position-ids": "indexed.reset_positions",
    "--reset-attention-mask": "indexed.reset_attention",
    "--eod-mask-loss": "indexed.mask_end_loss",
}
_OF_TOKENIZER = ("--tokenizer-type", "--tokenizer-model", "--vocab-file", "--merge-file")


def check(stage: StageContext) -> None:
    """Keys that Megatron-LM has no flag for, and arguments that contradict keys."""
    recipe = stage.recipe
    own = recipe.own_section("megatron", Megatron)
    trainer = recipe.trainer
    if trainer is not None:
        if trainer.max_steps is None and trainer.train_samples is None:
            stage.error(("trainer", "max_steps"), "is missing; Megatron-LM counts steps, not epochs", "max_steps")
        if isinstance(trainer.val_check_interval, float) and _is_written(stage, "trainer", "val_check_interval"):
            stage.error(
                ("trainer", "val_check_interval"),
                "is a fraction of an epoch, and Megatron-LM counts steps; write a whole number",
                "val_check_interval in steps",
                trainer.val_check_interval,
            )
        if trainer.early_stopping is not None:
            _no_flag(stage, ("trainer", "early_stopping"))
        if trainer.seed < 1:
            stage.error(("trainer", "seed"), "is 0, and Megatron-LM refuses it; choose 1 or more", "seed > 0", 0)
        if trainer.precision == "tf32":
            _no_flag(stage, ("trainer", "precision"), "tf32")
    rules.validated_by_loss(stage)
    _check_saving_and_batch(stage)
    if recipe.model is not None and recipe.model.checkpoint is not None:
        _no_flag(stage, ("model", "checkpoint"))
    if recipe.text is not None:
        # of the recipe's top level it may be another stage's
        tell = stage.error if "text" in stage.loaded.own else stage.warning
        tell(("text",), "is not read by Megatron-LM; tokenise it (`hpclm data tokenize`), give indexed", "indexed data")
    _check_data(stage, own)
    _check_tokenizer(stage, own)
    _check_arguments(stage, own)


def _check_saving_and_batch(stage: StageContext) -> None:
    recipe = stage.recipe
    for key in ("keep_last", "keep_best"):
        if _is_written(stage, "checkpoint", key):
            stage.warning(
                ("checkpoint", key),
                "has no effect: Megatron-LM keeps every checkpoint; leave it out",
                "kept checkpoints",
            )
    if recipe.checkpoint.asynchronous:
        what = "is engine megatron's; give --async-save as megatron.arguments"
        stage.error(("checkpoint", "asynchronous"), what, "Megatron-LM's flags")
    if recipe.batch is not None and recipe.batch.rampup is not None:
        what = "is not read by core_v0.18 and later, which train with the whole batch from the start; check the image's"
        stage.warning(("batch", "rampup"), what, "rampup before core_v0.18")


def _is_written(stage: StageContext, *keys: str) -> bool:
    return stage.loaded.tree.get(*keys) is not None


def _no_flag(stage: StageContext, keys: tuple[str, ...], value: str = "") -> None:
    name = f"{value} " if value else ""
    stage.error(
        keys, f"{name}has no flag of Megatron-LM; leave it out, or choose engine: megatron", "Megatron-LM's flags"
    )


def _check_data(stage: StageContext, own: Megatron | None) -> None:
    indexed = stage.recipe.indexed is not None
    if own is None or bool(own.data_path) != indexed:
        return
    if indexed:
        stage.error(("megatron", "data_path"), "and indexed.paths are both given; keep indexed", "one source of data")
    else:
        stage.error(("indexed",), "is missing; add indexed with paths, or megatron.data_path", "needed section")


def _check_tokenizer(stage: StageContext, own: Megatron | None) -> None:
    words = own.arguments if own else ()
    written = stage.recipe.tokenizer
    by_hand = any(word.startswith("--tokenizer-type") for word in words)
    if written is not None and written.train is not None:
        stage.error(
            ("tokenizer", "train"), "Megatron-LM trains no tokenizer; give vocab_file and merges_file", "tokenizer"
        )
    elif written is not None and written.tokenizer_file and not written.tokenizer_file.endswith(".model"):
        if not by_hand:
            stage.error(
                ("tokenizer", "tokenizer_file"),
                "Megatron-LM reads no tokenizer.json by itself; give --tokenizer-type HuggingFaceTokenizer and "
                "--tokenizer-model FOLDER as megatron.arguments",
                "tokenizer",
            )
    elif written is None and not by_hand:
        stage.error(
            ("tokenizer",),
            "is missing; give vocab_file and merges_file, or --tokenizer-type and its flags as megatron.arguments",
            "tokenizer",
        )


def check_vocabulary(stage: StageContext, entries: int | None) -> None:
    """Megatron-LM takes the tokenizer's vocabulary, whatever model.vocab_size says.

    Args:
        entries: of the tokenizer, where they are known.
    """
    written = stage.recipe.model.vocab_size if stage.recipe.model is not None else None
    if written is None or written == entries:
        return
    keys, rule = ("model", "vocab_size"), "Megatron-LM's vocabulary"
    if entries is None:
        stage.warning(keys, "is not passed on: Megatron-LM takes the tokenizer's entries; leave it out", rule, written)
    else:
        what = f"{written} is not passed on: Megatron-LM takes the tokenizer's {entries} entries; leave it out"
        stage.error(keys, what, rule, written, (entries,))


def _check_arguments(stage: StageContext, own: Megatron | None) -> None:
    """Arguments that say what a key says."""
    of_keys = dict(_OF_KEYS)
    if stage.recipe.indexed is not None:
        of_keys |= _OF_INDEXED
    if tokenizer_flags(stage):
        of_keys |= dict.fromkeys(_OF_TOKENIZER, "tokenizer")
    for index, word in enumerate(own.arguments if own else ()):
        flag = flag_of(word)
        where = ("megatron", "arguments", index)
        if flag in of_keys:
            stage.error(where, f"{flag} is made from {of_keys[flag]}; set that instead", "flags of keys", word)
        elif flag in _OF_DATA:
            stage.error(where, f"{flag} names other data; {_OF_DATA[flag]}, and leave it out", "one source of data")
        elif flag == "--optimizer":
            stage.warning(where, f"{flag} is used in place of optim.name", "flags of keys", word)


def check_model(
    stage: StageContext, model: ModelSpec, indexed: IndexedData | None, accumulation: int | None, *, laid_out: bool
) -> None:
    """The checks that hpclm's own engine makes, for Megatron-LM's rules.

    Args:
        laid_out: the arguments say which layers a pipeline stage has.
    """
    if model.activation not in _ACTIVATIONS:
        stage.error(
            ("model", "activation"),
            f"{model.activation} has no flag of Megatron-LM; choose {either(_ACTIVATIONS)}, or engine: megatron",
            "Megatron-LM's activations",
            model.activation,
            _ACTIVATIONS,
        )
    for key in ("rotary_base", "rotary_interpolation"):
        value = getattr(model, key)
        if value != int(value):
            what = f"{value:g} is not whole, and Megatron-LM's flag takes whole numbers; or choose engine: megatron"
            stage.error(("model", key), what, "whole numbers", value, (round(value),))
    if model.num_moe_experts is not None and model.add_bias_linear:
        what = "is true, and Megatron-LM's experts have no biases before core_r0.15; set it to false"
        stage.error(("model", "add_bias_linear"), what, "no bias with experts", True, (False,))
    if stage.recipe.parallel.expert > 1 and lowering.precision(stage) == "fp16":
        what = "fp16 with parallel.expert above 1 is refused by core_v0.14; check the image's, or choose bf16"
        stage.warning(("trainer", "precision"), what, "no fp16 with experts in core_v0.14", "fp16", ("bf16",))
    groups, tensor = model.num_query_groups, stage.recipe.parallel.tensor
    if groups % tensor and tensor % groups == 0:
        stage.warning(
            ("model", "num_query_groups"),
            f"{groups} is less than tensor {tensor}, which Megatron-LM takes from core_r0.16 on; check the image's",
            "groups >= tensor before core_r0.16",
            groups,
        )
    length = sample_length(model, indexed)
    keys = ("indexed", "seq_length") if indexed else ("model", "max_position_embeddings")
    parallel_rules.split_model(stage, model)
    if not laid_out:
        parallel_rules.stages(stage, model, accumulation)
        parallel_rules.recompute(stage, model)
    rules.lengths(stage, model, length, keys)
    parallel_rules.sequence_parallel(stage, length, keys)
    parallel_rules.context_parallel(stage, length, keys)
    if indexed is not None:
        indexed_checks.check(stage, indexed, model)


def check_schedule(stage: StageContext) -> None:
    """lr_warmup_steps < lr_decay_steps (OptimizerParamScheduler)."""
    trainer, spec = stage.recipe.trainer, lowering.optim(stage)
    _, length = lowering.schedule_length(stage, None if trainer is None else trainer.max_steps)
    if length is None or stage.recipe.optim is None:
        return
    warmup, decay = spec.warmup(length), length - spec.constant(length)
    if warmup >= decay:
        stage.error(
            ("optim", "schedule", "warmup_steps"),
            f"{warmup} warm-up steps are not less than the {decay} in which Megatron-LM's rate falls; choose fewer",
            "warm-up < decay",
            warmup,
            (max(0, decay - 1),),
        )
