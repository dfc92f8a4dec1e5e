"""Every key of transformers' TrainingArguments, and what becomes of it. LLaMA-Factory takes them whole.

Source: huggingface/transformers 4.40 to 5.24, src/transformers/training_args.py and training_args_seq2seq.py.
"""

from __future__ import annotations

# A key that would change the result: the values that change nothing, and why it is refused.
Refusals = dict[str, tuple[tuple[object, ...], str]]

TAKEN: dict[str, str] = {
    "per_device_train_batch_size": "batch.micro; batch.global is this × gradient_accumulation_steps × devices, of the "
    "nodes and devices_per_node given at the import, as by --set hpclm.resources.devices_per_node=8 (else one)",
    "gradient_accumulation_steps": "batch.global",
    "num_train_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule.name",
    "lr_scheduler_kwargs": "optim.min_lr",
    "warmup_steps": "optim.schedule.warmup_steps",
    "warmup_ratio": "optim.schedule.warmup_ratio",
    "optim": "optim.name",
    "adafactor": "optim.name",
    "weight_decay": "optim.weight_decay",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_epsilon": "optim.epsilon",
    "max_grad_norm": "trainer.gradient_clip_norm",
    "bf16": "trainer.precision",
    "fp16": "trainer.precision",
    "tf32": "trainer.precision",
    "gradient_checkpointing": "sharding.checkpointing",
    "activation_checkpointing": "sharding.checkpointing",
    "logging_steps": "trainer.log_interval_steps",
    "eval_strategy": "trainer.val_check_interval",
    "evaluation_strategy": "trainer.val_check_interval",
    "eval_steps": "trainer.val_check_interval",
    "save_strategy": "checkpoint.save_interval_steps",
    "save_steps": "checkpoint.save_interval_steps",
    "save_total_limit": "checkpoint.keep_last",
    "report_to": "tracking",
    "run_name": "tracking.wandb.name",
    "seed": "trainer.seed",
    "full_determinism": "trainer.deterministic",
    "use_cpu": "resources.device",
    "no_cuda": "resources.device",
    "fsdp": "sharding.strategy",
    "fsdp_config": "sharding",
    "deepspeed": "sharding.deepspeed",
}

_RUN = "a run has its own folder, and goes on from its own checkpoints"
_LOGS = "a run always writes metrics.jsonl and its logs"
_LOADER = "rows are prepared before training"
_RANKS = "ranks meet in the run's folder"
_KERNELS = "how it is computed, not what"
_EVAL = "validation is the mean loss of every row"
_HUB = "nothing is sent to a hub"
_BEST = "the checkpoints of lowest val_loss are kept"
_SHARDS = "how weights are divided does not change the result"

NO_EFFECT: dict[str, str] = {
    **dict.fromkeys(("output_dir", "overwrite_output_dir", "ignore_data_skip", "enable_jit_checkpoint"), _RUN),
    **dict.fromkeys(("save_only_model", "save_on_each_node", "save_safetensors", "logging_dir"), _RUN),
    **dict.fromkeys(("restore_callback_states_from_checkpoint",), _RUN),
    **dict.fromkeys(("logging_strategy", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter"), _LOGS),
    **dict.fromkeys(("include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm"), _LOGS),
    **dict.fromkeys(("include_tokens_per_second", "skip_memory_metrics", "debug", "project"), _LOGS),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _LOGS),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"), _LOADER),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_multiprocessing_context"), _LOADER),
    **dict.fromkeys(("dataloader_in_order", "remove_unused_columns", "length_column_name"), _LOADER),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"), _RANKS),
    **dict.fromkeys(("ddp_static_graph", "ddp_backend", "ddp_timeout", "local_rank", "xpu_backend"), _RANKS),
    **dict.fromkeys(("tpu_num_cores", "tpu_metrics_debug", "ray_scope", "mp_parameters", "_n_gpu"), _RANKS),
    **dict.fromkeys(("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "torch_compile"), _KERNELS),
    **dict.fromkeys(
        ("torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config"), _KERNELS
    ),
    **dict.fromkeys(("use_liger", "use_cache", "torch_empty_cache_steps", "torchdynamo", "jit_mode_eval"), _KERNELS),
    **dict.fromkeys(("use_ipex", "use_mps_device", "half_precision_backend", "fp16_backend"), _KERNELS),
    **dict.fromkeys(("fp16_opt_level", "auto_find_batch_size"), _KERNELS),
    **dict.fromkeys(("per_device_eval_batch_size", "per_gpu_eval_batch_size", "prediction_loss_only"), _EVAL),
    **dict.fromkeys(("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_delay"), _EVAL),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _EVAL),
    **dict.fromkeys(("include_inputs_for_metrics", "bf16_full_eval", "fp16_full_eval", "past_index"), _EVAL),
    **dict.fromkeys(("predict_with_generate", "generation_max_length", "generation_num_beams"), _EVAL),
    **dict.fromkeys(
        ("generation_config", "label_names", "sortish_sampler", "do_eval", "use_legacy_prediction_loop"), _EVAL
    ),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision", "push_to_hub_model_id", "push_to_hub_organization"), _HUB),
    **dict.fromkeys(("push_to_hub_token",), _HUB),
    **dict.fromkeys(("load_best_model_at_end", "greater_is_better"), _BEST),
    **dict.fromkeys(("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"), _SHARDS),
    "average_tokens_across_devices": "the loss is the mean over the tokens of all devices",
    "data_seed": "rows are drawn by trainer.seed",
    "accelerator_config": "batches are cut by batch.micro and batch.global",
    "split_batches": "batches are cut by batch.micro and batch.global",
    "dispatch_batches": "batches are cut by batch.micro and batch.global",
    "dataloader_drop_last": "an incomplete last batch is always left out",
    "group_by_length": "rows are drawn at random, and batches have no padding that it could save",
    "train_sampling_strategy": "rows are drawn at random, and batches have no padding that sorting could save",
    "do_train": "an imported file trains",
}

REFUSED: Refusals = {
    "do_predict": ((False,), "predictions are an evaluate stage of a recipe; remove it"),
    "resume_from_checkpoint": (
        (False, True),
        "a Trainer's checkpoint is not read; give its model, or hpclm resume RUN",
    ),
    "label_smoothing_factor": ((0,), "there is no label smoothing; remove it"),
    "neftune_noise_alpha": ((0,), "there is no NEFTune noise; remove it"),
    "optim_args": (("", {}), "optimizers have no other options; remove it"),
    "optim_target_modules": ((), "every weight has the same optimizer; remove it"),
    "metric_for_best_model": (("loss", "eval_loss"), "the best checkpoint is that of lowest val_loss; remove it"),
    "per_gpu_train_batch_size": ((), "write per_device_train_batch_size"),
    "parallelism_config": ((), "layers and sequences are not divided by engine hf; remove it"),
    "tp_size": ((0, 1), "layers are not divided by engine hf; remove it"),
    "sharded_ddp": (("", ()), "write fsdp or deepspeed"),
}
# Never copied or shown: the file itself goes into the run's folder.
SECRETS = ("hub_token", "push_to_hub_token")
