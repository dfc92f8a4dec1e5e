"""What becomes of Megatron-LM's flags that no key of a recipe stands for, by their names.

Source: NVIDIA/Megatron-LM v2.0 to core_v0.19.0, megatron/training/arguments.py.
"""

from __future__ import annotations

from functools import cache

from hpclm.core.nearest import nearest_name
from hpclm.formats.megatron import argument_values
from hpclm.recipe.importers.megatron.keys import NO_EFFECT, REFUSED, TAKEN

_HOW = "how it is computed, not what"
_LOGS = "metrics and logs are in the run's folder"
_SAVES = "checkpoints are in the run's folder, and a run goes on from its own"
# Without effect here.
_IDLE = {
    _LOGS: (
        "log_ no_log_ disable_log_ one_logger no_one_logger enable_one_logger timing_log record_shapes nvtx_ "
        "profile pytorch_profiler straggler disable_straggler config_logger flight_recorder no_flight "
        "disable_flight app_tag run_workload dump_param   calc_ft "
        "rerun_mode gpu_sniff check_for_ check_weight_hash save_activations save_dgrads save_params_interval "
        "save_tokens save_wgrads"
    ),
    _SAVES: (
        "ckpt_ no_ckpt disable_ckpt dist_ckpt async_ non_persistent use_persistent adlr_ exit_ "
        "override_ckpt verify_integrity save_retain override_opt override_lr use_checkpoint_opt use_checkpoint_lr "
        "distrib_optim dist_optim load_main_params load_model_opt disable_stream no_stream disable_strict "
        "no_strict replication result_rejected"
    ),
    "ranks meet in the run's folder": (
        "lazy_mpu distributed_timeout disable_gloo inprocess ft_ enable_ft create_all_gather enable_msc disable_msc "
        "object_storage s3_cache symmetric_ar disable_symmetric"
    ),
    "NCCL's options are environment variables of the site (environment: {NCCL_…: …})": (
        "nccl_ use_nccl use_sharp sharp_ high_priority pipeline_model_parallel_comm"
    ),
    _HOW: (
        "suggested_communication_unit_size train_sync per_dataset no_query_key_layer_scaling hybrid_context "
        "tp_comm no_tp_comm disable_tp_comm ddp_ DDP overlap_ no_overlap cuda_graph external_cuda optimizer_cuda "
        "delay_ no_delay defer_ wgrad_deferral distribute_ cpu_offloading fine_grained offload_modules "
        "min_offloaded delta_offload activation_offload no_gradient_reduce no_scatter_gather microbatch_group "
        "no_align disable_align num_distributed_optimizer no_barrier disable_jit use_ring use_contiguous "
        "no_contiguous mmap_ dataloader_defer dataloader_fast flash_attention cp_comm use_te use_transformer "
        "moe_deepep moe_flex moe_hybridep moe_permute moe_ncclep moe_use_legacy moe_paged moe_single "
        "moe_layer_recompute use_grouped fused_residual no_scaled scaled_upper init_model_with no_initialization "
        "disable_manual_gc no_manual_gc disable_async ep_overlap onnx_ fp32_allreduce te_rng disable_clone "
        "no_clone use_layer_wise no_use_layer hierarchical_context use_fused_weighted "
        "report_topk data_impl mlp_chunks nccl_all use_tokenizer_model no_use_tokenizer "
        "disable_use_tokenizer enable_experimental"
    ),
}
# They would change what is trained.
_OTHERS = {
    "is of an old Megatron-LM; write --micro-batch-size": ("batch_size"),
    "is of an old Megatron-LM; write --lr-warmup-fraction": ("warmup"),
    "is of an old Megatron-LM; write --tensor-model-parallel-size": ("model_parallel_size"),
    "is of an old Megatron-LM; write --recompute-activations, or --recompute-granularity and what belongs to it": (
        "checkpoint_activations activations_checkpoint checkpoint_num_layers"
    ),
    "the model, the split or the batch is then not in the script; write the flags that it stands for": (
        "use_checkpoint_args use_mp_args yaml_cfg"
    ),
    "write data_path, or train_data_path and valid_data_path": ("data_args"),
    "the batch grows by rampup_batch_size; write that": ("step_batch_size"),
    "the scale of fp16 is found while training": ("loss_scale"),
    "engine megatron does not divide weights so; parallel.distributed_optimizer divides the optimizer's state": (
        "use_torch_fsdp2 use_megatron_fsdp use_custom_fsdp megatron_fsdp fsdp_ torch_fsdp2 data_parallel_sharding "
        "outer_dp enable_full_sharding"
    ),
    "is for other models": (
        "bert_ biencoder ict_ block_data titles evidence indexer retro retriever embedding_path use_one_sent "
        "query_in short_seq mask_ vision dino swin img_ patch_ iter_per num_classes num_channels classes_ "
        "data_per_class head_lr faiss encoder_ decoder_ relative_ vocab_extra output_bert "
        "pipeline_model_parallel_split sample_rate freeze_all sft finetune_"
    ),
    "layers of that kind are not here": (
        "mamba hybrid_attention hybrid_layer hybrid_mlp hybrid_override "
        "is_hybrid linear_ dsa_ disable_dsa no_dsa kv_lora q_lora qk_ v_head mla_ cache_mla "
        "experimental_attention window softmax_type mscale mrope yarn no_yarn heterogeneous disable_mamba "
        "attention_output no_rope_freq rope_type rotary_scaling quick_geglu glu_ activation_func"
    ),
    "is not for pre-training": (
        "inference no_inference flash_decode decode_only enable_chunked disable_chunked export langrl no_langrl "
        "rl_ no_rl grpo perform_rl refit use_legacy_static num_speculative max_tokens_to_oom chat_template "
        "skip_train test_mode logits_ "
    ),
    "there is no fp8 and no fp4": (
        "fp8 fp4 disable_fp8 no_fp8 kitchen use_kitchen te_precision keep_fp8 first_last num_layers_at reuse_grad_buf"
    ),
    "samples are blended, and labels masked, as by core_v0.16": ("renormalize_blend allow_ambiguous"),
    "there is no fill in the middle": ("fim_"),
    "adamw is the optimizer": ("muon lion sgd"),
    "there is no multi-token prediction": ("mtp_"),
    "weights begin as init_std says": ("init_method embedding_init data_parallel_random mup use_mup"),
    "experts are as Mixtral's: none is shared, nothing is dropped": ("moe_"),
}
_ELSE = "has nothing like it here"
_KEEP = "; remove it if that does not matter, or keep the script by engine: megatron-lm"


@cache
def names() -> frozenset[str]:
    """Of all releases' flags, as argparse calls them."""
    flags = [*argument_values.flags(), *argument_values.older_flags()]
    known = (flag.removeprefix("--").replace("-", "_") for flag in flags)
    return frozenset(known)


def fate(name: str) -> tuple[bool, str]:
    """Whether a flag that no key stands for has no effect here, and the reason for that, or for its refusal."""
    if name not in names():
        near = nearest_name(name, [*TAKEN, *NO_EFFECT, *REFUSED, *names()])
        hint = f"did you mean --{near.replace('_', '-')}?" if near else "remove it if it does not matter"
        return False, f"is no flag of Megatron-LM's pretrain_gpt.py or of torchrun's that is known; {hint}"
    for reason, beginnings in _IDLE.items():
        if name.startswith(tuple(beginnings.split())):
            return True, reason
    for reason, beginnings in _OTHERS.items():
        if name.startswith(tuple(beginnings.split())):
            return False, reason if "write" in reason else reason + _KEEP
    return False, _ELSE + _KEEP
