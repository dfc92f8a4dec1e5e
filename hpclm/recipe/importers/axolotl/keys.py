"""Every key of axolotl's files, and what becomes of it.

Source: axolotl-ai-cloud/axolotl 0.4 to 0.18 and main of 2026-07, src/axolotl/utils/schemas/*.py,
src/axolotl/integrations/*/args.py, and examples/ for keys of older releases.
"""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning.argument_keys import NO_EFFECT as TRAINERS

# transformers' name for a key, and axolotl's.
OWN = {
    "per_device_train_batch_size": "micro_batch_size",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler",
}
TAKEN: dict[str, str] = {
    "base_model": "model.checkpoint",
    "adapter": "fine_tune.method",
    "lora_r": "fine_tune.lora.rank",
    "lora_alpha": "fine_tune.lora.alpha",
    "lora_dropout": "fine_tune.lora.dropout",
    "lora_target_modules": "fine_tune.lora.targets",
    "lora_target_linear": "fine_tune.lora.targets",
    "lora_modules_to_save": "fine_tune.lora.modules_to_save",
    "peft_use_rslora": "fine_tune.lora.rslora",
    "peft_use_dora": "fine_tune.lora.dora",
    "load_in_4bit": "huggingface.quantization",
    "bnb_config_kwargs": "huggingface.quantization",
    "micro_batch_size": "batch.micro; batch.global is this × gradient_accumulation_steps × devices, of the nodes and "
    "devices_per_node given at the import, as by --set hpclm.resources.devices_per_node=8 (else one)",
    "batch_size": "batch.global",
    "gradient_accumulation_steps": "batch.global",
    "num_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "learning_rate": "optim.lr",
    "lr_scheduler": "optim.schedule.name",
    "lr_scheduler_kwargs": "optim.min_lr",
    "cosine_min_lr_ratio": "optim.min_lr",
    "warmup_steps": "optim.schedule.warmup_steps",
    "warmup_ratio": "optim.schedule.warmup_ratio",
    "optimizer": "optim.name",
    "weight_decay": "optim.weight_decay",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_epsilon": "optim.epsilon",
    "max_grad_norm": "trainer.gradient_clip_norm",
    **dict.fromkeys(("bf16", "fp16", "tf32", "bfloat16", "float16"), "trainer.precision"),
    "gradient_checkpointing": "sharding.checkpointing",
    "logging_steps": "trainer.log_interval_steps",
    **dict.fromkeys(("eval_strategy", "eval_steps", "evals_per_epoch"), "trainer.val_check_interval"),
    **dict.fromkeys(("save_strategy", "save_steps", "saves_per_epoch"), "checkpoint.save_interval_steps"),
    "save_total_limit": "checkpoint.keep_last",
    "early_stopping_patience": "trainer.early_stopping.patience",
    "seed": "trainer.seed",
    "fsdp": "sharding.strategy",
    "fsdp_config": "sharding",
    "dp_shard_size": "sharding.strategy: fsdp",
    "dp_replicate_size": "sharding.group_size",
    "deepspeed": "sharding.deepspeed",
    "datasets": "instructions.train",
    "test_datasets": "instructions.validation",
    "val_set_size": "instructions.validation",
    "sequence_len": "instructions.max_seq_length",
    "excess_length_strategy": "instructions.too_long",
    "sample_packing": "instructions.packing",
    "train_on_inputs": "instructions.learn",
    "chat_template": "instructions.template",
    "chat_template_jinja": "instructions.chat_template",
    "default_system_message": "instructions.system",
    "use_tensorboard": "tracking.tensorboard",
    **dict.fromkeys(("use_wandb", "wandb_project"), "tracking.wandb"),
    "wandb_entity": "tracking.wandb.entity",
    "wandb_name": "tracking.wandb.name",
    "wandb_mode": "tracking.wandb.mode",
    "use_mlflow": "tracking.mlflow",
    "mlflow_tracking_uri": "tracking.mlflow.uri",
    "mlflow_experiment_name": "tracking.mlflow.experiment",
}
_RUN = "a run has its own folder, and goes on from its own checkpoints"
_LOGS = "a run always writes metrics.jsonl and its logs"
_PREPARED = "rows are prepared before training, and kept in instructions.cache"
_KERNELS = "how it is computed, not what"
_RANKS = "ranks meet in the run's folder"
_EVAL = "validation is the mean loss of every row; answers are an evaluate stage's"
_CLOUD = "the site profile says where a run runs"
_PACKS = "rows are packed first fit, and each sees itself alone"
_MODEL = "the model's own files say what it is"
_EXPORT = "of the export"

_RUN_KEYS = (
    *("output_dir", "auto_resume_from_checkpoints", "save_first_step", "save_only_model", "save_safetensors"),
    *("load_best_model_at_end", "greater_is_better", "tokenizer_save_jinja_files", "dynamic_checkpoint"),
    *("fsdp_final_state_dict_type", "axolotl_config_path", "strict", "is_preprocess", "debug", "device"),
)
_LOG_KEYS = (
    *("wandb_run_id", "wandb_watch", "wandb_log_model", "mlflow_run_name", "hf_mlflow_log_artifacts", "use_comet"),
    *("comet_api_key", "comet_workspace", "comet_project_name", "comet_experiment_key", "comet_mode", "comet_online"),
    *("comet_experiment_config", "use_trackio", "trackio_project_name", "trackio_run_name", "trackio_space_id"),
    *("use_otel_metrics", "otel_metrics_host", "otel_metrics_port", "profiler_steps", "profiler_steps_start"),
    *("include_tokens_per_second", "include_tkps", "gc_steps", "gc_collect_steps", "use_swanlab", "swanlab_project"),
    *("swanlab_experiment_name", "swanlab_description", "swanlab_mode", "swanlab_workspace", "swanlab_api_key"),
    *("swanlab_log_model", "swanlab_web_host", "swanlab_api_host", "swanlab_lark_webhook_url", "project_name"),
    *("swanlab_lark_secret", "swanlab_log_completions", "swanlab_completion_log_interval"),
    *("swanlab_completion_max_buffer", "generate_samples", "num_generation_samples", "generation_max_new_tokens"),
    *("generation_temperature", "generation_top_p", "generation_top_k", "generation_prompt_ratio"),
    *("generation_do_sample", "gradio_title", "gradio_share", "gradio_server_name", "gradio_server_port"),
    *("gradio_max_new_tokens", "gradio_temperature"),
)
_PREPARED_KEYS = (
    *("dataset_prepared_path", "shuffle_before_merging_datasets", "shuffle_merged_datasets", "dataset_processes"),
    *("dataset_num_proc", "dataset_keep_in_memory", "dataloader_pin_memory", "dataloader_num_workers"),
    *("dataloader_prefetch_factor", "dataloader_drop_last", "accelerator_config", "remove_unused_columns"),
    *("push_dataset_to_hub", "num_dataset_shards_to_save", "preprocess_iterable", "skip_prepare_dataset"),
    *("streaming_multipack_buffer_size", "pretrain_multipack_buffer_size", "group_by_length"),
    *("multipack_real_batches", "batch_flattening", "pad_to_sequence_len", "pad_to_multiple_of", "sequence_length"),
    *("total_num_tokens", "total_supervised_tokens", "length_column_name"),
)
_PACK_KEYS = (
    *("sample_packing_group_size", "sample_packing_bin_size", "sample_packing_sequentially"),
    *("sample_packing_mp_start_method", "sample_packing_eff_est", "sample_packing_seq_len_multiplier"),
    *("eval_sample_packing", "pretrain_multipack_attn"),
)
_KERNEL_KEYS = (
    *("xformers_attention", "sdp_attention", "flex_attention", "flex_attn_compile_kwargs", "flash_attention"),
    *("flash_attn_cross_entropy", "flash_attn_fuse_mlp", "flash_attn_fuse_qkv", "flash_attn_rms_norm"),
    *("flash_optimum", "sage_attention", "eager_attention", "attn_implementation", "gemma4_hybrid_attn_impl"),
    *("large_head_attention", "flash_attn_d512", "sdpa_varlen", "fused_attn_kernel", "experts_implementation"),
    *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "chunked_cross_entropy"),
    *("chunked_cross_entropy_num_chunks", "tiled_mlp", "tiled_mlp_num_shards", "tiled_mlp_use_original_mlp"),
    *("llama4_linearized_experts", "deepcompile", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("torch_compile_options", "torch_empty_cache_steps", "gradient_checkpointing_kwargs", "use_kernels"),
    *("selective_checkpointing", "activation_offloading", "layer_offloading", "liger_rope", "liger_rms_norm"),
    *("liger_rms_norm_gated", "liger_layer_norm", "liger_swiglu", "liger_glu_activation", "liger_cross_entropy"),
    *(
        "liger_fused_linear_cross_entropy",
        "liger_use_token_scaling",
        "cut_cross_entropy",
        "unsloth_cross_entropy_loss",
        "unsloth_lora_mlp",
        "unsloth_lora_qkv",
    ),
    *("unsloth_lora_o", "unsloth_rms_norm", "unsloth_rope", "use_cut_cross_entropy"),
    *("low_cpu_mem_usage", "device_map", "max_memory", "gpu_memory_limit", "experimental_skip_move_to_device"),
    *("use_scattermoe", "use_sonicmoe", "use_dsv4_kernels", "use_glm_dsa_kernels", "moe_grouped_backend"),
    *("expert_backend", "moe_dequant_chunk_size", "moe_bnb_fast", "auto_find_batch_size", "lora_on_cpu"),
    *("peft_autocast_adapter_dtype", "embeddings_skip_upcast", "fp32_norms", "fp32_norm_classes", "torch_dtype"),
    *("float32", "heads_k_stride", "ring_attn_func", "torchdistx_path", "fsdp_version", "dataset_text_field"),
)
_RANK_KEYS = (
    *("world_size", "local_rank", "ddp", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_find_unused_parameters", "use_ray", "ray_run_name", "ray_num_workers", "resources_per_worker"),
)
_EVAL_KEYS = (
    *("eval_batch_size", "eval_table_size", "eval_max_new_tokens", "do_causal_lm_eval", "eval_causal_lm_metrics"),
    *("do_bench_eval", "bench_dataset", "bench_split", "eval_sequence_len", "lm_eval_tasks", "lm_eval_batch_size"),
    *("lm_eval_post_train", "lm_eval_model", "eval_table_max_new_tokens"),
)
_MODEL_KEYS = (
    *("model_type", "tokenizer_type", "type_of_model", "base_model_config", "tokenizer_use_fast", "tokenizer_legacy"),
    *("is_falcon_derived_model", "is_llama_derived_model", "is_mistral_derived_model", "is_qwen_derived_model"),
    *("base_model_ignore_patterns", "hf_use_auth_token", "revision_of_model", "lora_fan_in_fan_out"),
    *("tokenizer_use_mistral_common", "cls_model_config"),
)


def _options(feature: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"an option of {feature}, which is not used")


NO_EFFECT: dict[str, str] = {
    **{key: TRAINERS[key] for key in ("hub_model_id", "hub_strategy", "hub_revision")},
    **dict.fromkeys(_RUN_KEYS, _RUN),
    **dict.fromkeys(_LOG_KEYS, _LOGS),
    **dict.fromkeys(_PREPARED_KEYS, _PREPARED),
    **dict.fromkeys(_PACK_KEYS, _PACKS),
    **dict.fromkeys(_KERNEL_KEYS, _KERNELS),
    **dict.fromkeys(_RANK_KEYS, _RANKS),
    **dict.fromkeys(_EVAL_KEYS, _EVAL),
    **dict.fromkeys(_MODEL_KEYS, _MODEL),
    **dict.fromkeys(("provider", "gpu", "gpu_count", "node_count", "volumes", "secrets", "branch", "memory"), _CLOUD),
    **dict.fromkeys(("dockerfile_commands", "timeout", "memory_preprocess", "timeout_preprocess"), _CLOUD),
    **dict.fromkeys(("merge_lora", "merge_method"), _EXPORT),
    "special_tokens": "compared with the tokenizer's",
    "plugins": "kernels and logs",
    "trust_remote_code": "where a model has Python files, the plan asks for huggingface.remote_code",
    "loss_watchdog_threshold": "a loss that is no number ends a run",
    "loss_watchdog_patience": "a loss that is no number ends a run",
    "eot_tokens": "the chat template says where an answer ends",
    "mean_resizing_embeddings": "the vocabulary stays the model's",
    "shrink_embeddings": "the vocabulary stays the model's",
    "resize_token_embeddings_to_32x": "the vocabulary stays the model's",
    "fix_untrained_tokens": "the vocabulary stays the model's",
    "freeze_mm_modules": "of images and sound, which rows may not have",
    "image_size": "of images, which rows may not have",
    "image_resize_algorithm": "of images, which rows may not have",
    "full_finetune": "adapter says what is trained",
    "test_value": "of axolotl's tests",
    **_options("load_in_4bit", "qlora_sharded_model_loading", "loftq_config"),
    **_options("gptq", "gptq_groupsize", "gptq_bits", "gptq_model_v1", "gptq_disable_exllama"),
    **_options("loraplus_lr_ratio", "loraplus_lr_embedding"),
    **_options("relora", "relora_prune_ratio", "relora_prune_method", "relora_cpu_offload", "relora_steps"),
    **_options("relora", "relora_warmup_steps", "relora_anneal_steps"),
    **_options("jagged_restart_steps", "jagged_restart_warmup_steps", "jagged_restart_anneal_steps"),
    **_options("lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute"),
    **_options("fp8", "fp8_enable_fsdp_float8_all_gather"),
    **_options("rl", "trl", "vllm", "ebft", "dpo_use_weighting", "dpo_label_smoothing", "precompute_ref_log_probs"),
    **_options("rl", "dpo_use_liger_kernel", "dpo_padding_free", "dpo_loss_type", "dpo_loss_weights", "orpo_alpha"),
    **_options("rl", "simpo_gamma", "cpo_alpha", "kto_desirable_weight", "kto_undesirable_weight", "rl_beta"),
    **_options("rl", "dpo_beta", "dpo_use_logits_to_keep", "dpo_generate_during_eval", "dpo_norm_loss", "rpo_alpha"),
    **_options("reward_model", "center_rewards_coefficient", "num_labels"),
    **_options("use_eaft", "eaft_alpha", "eaft_k"),
    **_options("use_pose", "pose_split_on_token_ids", "pose_max_context_len", "pose_num_chunks"),
    **_options("scaling_softmax", "scaling_softmax_factor", "scaling_softmax_bias"),
    **_options("optimizer muon or dion", "dion_lr", "dion_momentum", "dion_rank_fraction", "dion_rank_multiple_of"),
    **_options("optimizer q_galore", "qgalore_rank", "qgalore_update_proj_gap", "qgalore_scale", "qgalore_proj_type"),
    **_options("optimizer q_galore", "qgalore_proj_quant", "qgalore_proj_bits", "qgalore_proj_group_size"),
    **_options("optimizer q_galore", "qgalore_cos_threshold", "qgalore_gamma_proj", "qgalore_queue_size"),
    **_options("optimizer came", "adam_beta3", "adam_epsilon2"),
    **_options("model_quantization_config", "model_quantization_config_kwargs"),
    **_options("kernels for quantised models", "nonexpert_quantization", "dsv4_fp8_nonexpert_mode"),
    **_options("kernels for quantised models", "dsv4_fp8_lora_kernel", "dsv4_shared_mlp_lora_kernel"),
    **_options("kernels for quantised models", "dsv4_bf16_all", "dsv4_fp4_grouped_mode", "gemma4_fp8_nonexpert"),
    **_options("kernels for quantised models", "gemma4_nf4_nonexpert", "nvfp4_merge_aware"),
    **_options("kernels for quantised models", "nvfp4_merge_aware_start_step"),
    **_options("expert_parallel_size", "expert_parallel_backend", "expert_parallel_num_nvl_bytes"),
    **_options("expert_parallel_size", "expert_parallel_num_rdma_bytes", "expert_parallel_token_capacity"),
    **_options("expert_parallel_size", "expert_parallel_fallback_on_unsupported"),
    **_options("kd_trainer", "kd_ce_alpha", "kd_alpha", "kd_temperature", "kd_beta", "kd_normalize_topk"),
    **_options("kd_trainer", "kd_online_server_base_url", "kd_online_topk", "kd_online_server", "kd_online_timeout"),
    **_options("kd_trainer", "kd_temperature_min", "kd_zscore_base_temp", "kd_top_k_before_softmax"),
    **_options("nemo_gym_enabled", "nemo_gym_dir", "nemo_gym_auto_clone", "nemo_gym_config_paths"),
    **_options("nemo_gym_enabled", "nemo_gym_head_port", "nemo_gym_server_timeout", "nemo_gym_verify_timeout"),
    **_options("nemo_gym_enabled", "nemo_gym_run_timeout", "nemo_gym_datasets", "nemo_gym_auto_start"),
    **_options("nemo_gym_enabled", "nemo_gym_model_name", "nemo_gym_multi_turn", "nemo_gym_max_turns"),
    "spectrum_model_name": "an option of spectrum_top_fraction, which is not used",
    "grokfast_lamb": "an option of grokfast_alpha, which is not used",
}
SECRETS = ("comet_api_key", "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url")
