"""Every key of LLaMA-Factory's files beside those of TrainingArguments, and what becomes of it.

Source: hiyouga/LLaMA-Factory 0.7 to 0.9.5 and main of 2026-08, src/llamafactory/hparams/*.py, and examples/ for keys
that its Megatron adapter takes.
"""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning import argument_keys
from hpclm.recipe.importers.fine_tuning.argument_keys import Refusals

TAKEN: dict[str, str] = {
    **argument_keys.TAKEN,
    "model_name_or_path": "model.checkpoint",
    "stage": "task",
    "finetuning_type": "fine_tune.method",
    "lora_rank": "fine_tune.lora.rank",
    "lora_alpha": "fine_tune.lora.alpha",
    "lora_dropout": "fine_tune.lora.dropout",
    "lora_target": "fine_tune.lora.targets",
    "additional_target": "fine_tune.lora.modules_to_save",
    "use_rslora": "fine_tune.lora.rslora",
    "use_dora": "fine_tune.lora.dora",
    "quantization_bit": "huggingface.quantization",
    "quantization_method": "huggingface.quantization",
    "quantization_type": "huggingface.quantization",
    "double_quantization": "huggingface.quantization",
    "pure_bf16": "trainer.precision",
    "disable_gradient_checkpointing": "sharding.checkpointing",
    "early_stopping_steps": "trainer.early_stopping.patience",
    "dataset": "instructions.train",
    "eval_dataset": "instructions.validation",
    "dataset_dir": "instructions.train",
    "template": "instructions.template",
    "cutoff_len": "instructions.max_seq_length; of longer rows LLaMA-Factory shortens question and answer in "
    "proportion, hpclm cuts the end (instructions.too_long)",
    "train_on_prompt": "instructions.learn",
    "mask_history": "instructions.learn",
    "packing": "instructions.packing",
    "neat_packing": "instructions.packing",
    "default_system": "instructions.system",
    "val_size": "instructions.validation",
}

_KERNELS = "how it is computed, not what"
_LOGS = "a run always writes metrics.jsonl and its logs"
_PREPARED = "rows are prepared before training, and kept in instructions.cache"
_HUB = "nothing is fetched while a run is queued or runs"
_GENERATES = "of answers, which an evaluate stage of a recipe gives"
_EXPORT = "of the export"
_IMAGES = "of images, video and sound, which rows may not have"
_LAUNCH = "ranks meet in the run's folder"


def _options(feature: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"an option of {feature}, which is not used")


_KERNEL_KEYS = (
    *("flash_attn", "use_unsloth_gc", "enable_liger_kernel", "use_reentrant_gc", "upcast_layernorm"),
    *("upcast_lmhead_output", "use_v1_kernels", "low_cpu_mem_usage", "use_kv_cache", "device_map", "compute_dtype"),
    *("bias_activation_fusion", "apply_rope_fusion", "masked_softmax_fusion", "cross_entropy_loss_fusion"),
    *("moe_grouped_gemm", "moe_token_dispatcher_type", "use_distributed_optimizer", "overlap_param_gather"),
    *("overlap_grad_reduce", "recompute_granularity", "recompute_method", "recompute_num_layers"),
    *("mixed_precision", "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"),
    *("block_diag_attn", "use_packed_sequences"),
)
_LOG_KEYS = (
    *("plot_loss", "include_effective_tokens_per_second", "compute_accuracy", "print_param_status"),
    *("enable_torch_profiler", "profiler_output_dir", "profiler_wait_steps", "profiler_warmup_steps"),
    *("profiler_active_steps", "profiler_repeat", "profiler_record_shapes", "profiler_profile_memory"),
    *("profiler_with_stack", "profile_modules", "use_swanlab", "swanlab_project", "swanlab_workspace"),
    *("swanlab_run_name", "swanlab_mode", "swanlab_api_key", "swanlab_logdir", "swanlab_lark_webhook_url"),
    *("swanlab_lark_secret",),
)
_PREPARED_KEYS = (
    *("overwrite_cache", "preprocessing_batch_size", "preprocessing_num_workers", "tokenized_path", "buffer_size"),
    *("data_shared_file_system", "ignore_pad_token_for_loss", "use_fast_tokenizer", "model_max_length"),
)
_GENERATE_KEYS = (
    *("do_sample", "temperature", "top_p", "top_k", "num_beams", "max_length", "max_new_tokens", "eval_num_beams"),
    *("repetition_penalty", "length_penalty", "skip_special_tokens", "infer_backend", "infer_dtype"),
    *("offload_folder", "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "vllm_max_lora_rank", "vllm_config"),
    *("sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config", "sglang_lora_backend", "vllm_dtype"),
    *("task", "task_dir", "batch_size", "lang", "n_shot", "save_dir", "download_mode", "eval_on_each_dataset"),
)
_IMAGE_KEYS = (
    *("image_max_pixels", "image_min_pixels", "image_do_pan_and_scan", "crop_to_patches", "video_max_pixels"),
    *("video_min_pixels", "video_fps", "video_maxlen", "use_audio_in_video", "audio_sampling_rate", "media_dir"),
    *("freeze_vision_tower", "freeze_multi_modal_projector", "image_dir", "image_resolution", "video_resolution"),
)
NO_EFFECT: dict[str, str] = {
    **argument_keys.NO_EFFECT,
    **dict.fromkeys(_KERNEL_KEYS, _KERNELS),
    **dict.fromkeys(_LOG_KEYS, _LOGS),
    **dict.fromkeys(_PREPARED_KEYS, _PREPARED),
    **dict.fromkeys(_GENERATE_KEYS, _GENERATES),
    **dict.fromkeys(_IMAGE_KEYS, _IMAGES),
    **dict.fromkeys(("cache_dir", "model_revision", "hf_hub_token", "ms_hub_token", "om_hub_token"), _HUB),
    **dict.fromkeys(("export_size", "export_device", "export_quantization_bit", "export_legacy_format"), _EXPORT),
    **dict.fromkeys(("export_quantization_dataset", "export_quantization_nsamples", "export_hub_model_id"), _EXPORT),
    **dict.fromkeys(("export_quantization_maxlen", "export_hf_on_finish"), _EXPORT),
    **dict.fromkeys(("ray_init_kwargs", "master_addr", "master_port", "ray_run_name", "ray_storage_path"), _LAUNCH),
    **dict.fromkeys(("ray_storage_filesystem", "resources_per_worker", "placement_strategy"), _LAUNCH),
    "ray_num_workers": "give the devices: --devices-per-node, or --set hpclm.resources.devices_per_node=N",
    "trust_remote_code": "where a model has Python files, the plan asks for huggingface.remote_code",
    "enable_thinking": "the model's chat template says what thoughts look like",
    "preserve_thinking": "the model's chat template says what thoughts look like",
    "tool_format": "the model's chat template says what tools look like",
    **_options("add_special_tokens", "new_special_tokens_config", "init_special_tokens"),
    **_options("finetuning_type freeze", "freeze_trainable_layers", "freeze_trainable_modules"),
    **_options("finetuning_type freeze", "freeze_extra_modules"),
    **_options("finetuning_type oft", "module_dropout", "oft_rank", "oft_block_size", "oft_target"),
    **_options("loraplus_lr_ratio", "loraplus_lr_embedding"),
    **_options("pissa_init", "pissa_iter", "pissa_convert"),
    **_options("adapter_name_or_path", "adapter_folder", "create_new_adapter"),
    **_options("stage dpo or kto", "pref_beta", "pref_ftx", "pref_bco_weight", "pref_loss", "dpo_label_smoothing"),
    **_options("stage dpo or kto", "kto_chosen_weight", "kto_rejected_weight", "simpo_gamma", "ref_model", "ld_alpha"),
    **_options("stage dpo or kto", "ref_model_adapters", "ref_model_quantization_bit"),
    **_options("stage ppo", "ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards"),
    **_options("stage ppo", "reward_model", "reward_model_adapters", "reward_model_quantization_bit"),
    **_options("stage ppo", "reward_model_type"),
    **_options("use_galore", "galore_target", "galore_rank", "galore_update_interval", "galore_scale"),
    **_options("use_galore", "galore_proj_type", "galore_layerwise"),
    **_options("use_apollo", "apollo_target", "apollo_rank", "apollo_update_interval", "apollo_scale", "apollo_proj"),
    **_options("use_apollo", "apollo_proj_type", "apollo_scale_type", "apollo_layerwise", "apollo_scale_front"),
    **_options("use_badam", "badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval"),
    **_options("use_badam", "badam_update_ratio", "badam_mask_mode", "badam_verbose"),
    **_options("use_asft_loss or use_eaft_loss", "asft_alpha", "eaft_alpha"),
    **_options("quantization_bit", "quantization_device_map"),
    **_options("fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"),
    **_options("use_hyper_parallel", "hyper_parallel_args", "hyper_parallel_cp_size"),
    **_options("use_megatron_bridge", "megatron_bridge_args", "megatron_pretrained_checkpoint", "extra_config"),
    **_options("use_kt", "kt_config", "kt_cpu_activation", "kt_weight_path", "kt_non_expert_weight_path"),
    **_options("use_kt", "kt_expert_checkpoint_path", "kt_use_lora_experts", "kt_lora_expert_num"),
    **_options("use_kt", "kt_lora_expert_intermediate_size", "kt_optimize_rule", "cpu_infer", "chunk_size", "mode"),
    **_options("use_kt", "kt_maxlen", "kt_use_cuda_graph", "kt_mode", "kt_force_think"),
    "max_samples": "the data sets have no more rows",
    **_options("finetuning_type freeze", "name_module_trainable", "num_layer_trainable"),
    **_options("stage dpo or kto", "dpo_beta", "dpo_loss", "dpo_ftx", "orpo_beta"),
    **_options("use_badam", "badam_switch_block_every"),
    "reserved_label_len": "of rows that are too long, which instructions.too_long is about",
    "interleave_probs": "an option of mix_strategy, which is concat",
}

_OPTIMIZER = "there is no such optimizer; choose optim: adamw_torch"
_LOSS = "there is no such loss; remove it"
_PARALLEL = "layers are not divided by engine hf; give 1, and sharding by deepspeed or hpclm.sharding.strategy=fsdp"
_KT = "weights stay on the devices, or are offloaded by deepspeed or fsdp; remove it"

REFUSED: Refusals = {
    **argument_keys.REFUSED,
    "export_dir": ((), "this file merges or exports a model, which is no run; see hpclm model --help"),
    "adapter_name_or_path": ((), "an adapter is not trained on; merge it into the model, and give that"),
    "resize_vocab": ((), "the vocabulary stays the model's; resize it beforehand"),
    "add_tokens": ((), "the vocabulary stays the model's; add tokens beforehand"),
    "add_special_tokens": ((), "the vocabulary stays the model's; add tokens beforehand"),
    "new_special_tokens": ((), "the vocabulary stays the model's; add tokens beforehand"),
    "visual_inputs": ((), "rows of images, video or sound are not read"),
    "train_mm_proj_only": ((), "rows of images, video or sound are not read"),
    "split": (("train",), "rows are files; give a file of that part as the data set"),
    "split_special_tokens": ((), "special tokens are not split; remove it"),
    "rope_scaling": ((), "positions stay the model's; write rope_scaling into its config.json"),
    "shift_attn": ((), "every token sees all before it in its row; remove it"),
    "mixture_of_depths": ((), "there is no mixture of depths; remove it"),
    "use_unsloth": ((), "unsloth's kernels are not used; remove it"),
    "moe_aux_loss_coef": ((0,), "there is no loss of a router; remove it"),
    "train_from_scratch": ((), "the model's weights are where training begins; use task pretrain"),
    "loraplus_lr_ratio": ((), "all weights have one learning rate; remove it"),
    "pissa_init": ((), "adapters begin at B = 0; remove it"),
    "use_llama_pro": ((), "there are no expanded blocks; remove it"),
    "use_galore": ((), _OPTIMIZER),
    "use_apollo": ((), _OPTIMIZER),
    "use_badam": ((), _OPTIMIZER),
    "use_adam_mini": ((), _OPTIMIZER),
    "use_muon": ((), _OPTIMIZER),
    "use_dft_loss": ((), _LOSS),
    "use_asft_loss": ((), _LOSS),
    "use_eaft_loss": ((), _LOSS),
    "fp8": ((), "there is no fp8; remove it, bf16 stays"),
    "use_mca": ((), "this is Megatron's adapter; give the flags to engine megatron-lm"),
    "use_megatron_bridge": ((), "this is Megatron's bridge; give the flags to engine megatron-lm"),
    "use_hyper_parallel": ((), _PARALLEL),
    "tensor_model_parallel_size": ((1,), _PARALLEL),
    "pipeline_model_parallel_size": ((1,), _PARALLEL),
    "expert_model_parallel_size": ((1,), _PARALLEL),
    "context_parallel_size": ((1,), _PARALLEL),
    "virtual_pipeline_model_parallel_size": ((), _PARALLEL),
    "sequence_parallel": ((), _PARALLEL),
    "calculate_per_token_loss": ((True,), "the loss is the mean over all tokens; remove it"),
    "use_kt": ((), _KT),
    "disable_shuffling": ((), "rows are drawn at random; remove it"),
    "freeze_language_model": ((), "this model is of text alone; remove it"),
    "streaming": ((), "rows are prepared before training; remove it, max_steps stays"),
    "mix_strategy": (("concat",), "data sets are put one after another; mix them in one file, and remove it"),
}
SECRETS = (
    *argument_keys.SECRETS,
    *("hf_hub_token", "ms_hub_token", "om_hub_token", "swanlab_api_key", "swanlab_lark_secret"),
    "swanlab_lark_webhook_url",
)
