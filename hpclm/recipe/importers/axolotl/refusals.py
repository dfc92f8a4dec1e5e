"""Keys of axolotl that would change the result, and why each is refused."""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning.argument_keys import Refusals

_QUANTISED = "frozen layers are quantised to 4 bits; choose adapter: qlora and load_in_4bit, or remove it"
_PARALLEL = "layers and sequences are not divided by engine hf; give 1, and fsdp or deepspeed"
_RL = "only supervised fine-tuning is imported; remove it"
_RATE = "all weights have one learning rate; remove it"
_CURVE = "there is no such schedule; remove it"
_TRAINED = "all weights are trained, or adapters; remove it"
_VOCABULARY = "the vocabulary stays the model's; add tokens beforehand"
_EXTRA = "this plugin changes what is trained; remove it"
_RAW = "raw text is task pretrain's, by engine megatron; give datasets of instructions"
_ROWS = "rows are read as they are; change the file, and remove it"

REFUSED: Refusals = {
    "adapter_name_or_path": ((), "an adapter is not trained on; merge it into the model, and give that"),
    "lora_model_dir": ((), "an adapter is not trained on; merge it into base_model, and remove it"),
    "load_in_8bit": ((), _QUANTISED),
    "gptq": ((), _QUANTISED),
    "quantize_moe_experts": ((), _QUANTISED),
    "model_quantization_config": ((), _QUANTISED),
    "qat": ((), _QUANTISED),
    "quantization": ((), _QUANTISED),
    "llmcompressor": ((), _QUANTISED),
    "use_onebitllms": ((), _QUANTISED),
    "fp8": ((), "there is no fp8; remove it, bf16 stays"),
    "peft": (({"loftq_config": None},), "adapters begin at B = 0; remove it"),
    "peft_init_lora_weights": ((True,), "adapters begin at B = 0; remove it"),
    **dict.fromkeys(
        (
            "lora_target_parameters",
            "lora_rank_pattern",
            "lora_alpha_pattern",
            "peft_layers_to_transform",
            "peft_layers_pattern",
            "peft_layer_replication",
            "peft_trainable_token_indices",
        ),
        ((), "adapters are alike in every layer, and of modules alone; remove it"),
    ),
    "peft_ensure_weight_tying": ((), "adapters are alike in every layer, and of modules alone; remove it"),
    "loraplus_lr_ratio": ((), _RATE),
    "embedding_lr": ((), _RATE),
    "embedding_lr_scale": ((), _RATE),
    "lr_groups": ((), _RATE),
    "relora": ((), _TRAINED),
    "lisa_n_layers": ((), _TRAINED),
    "unfrozen_parameters": ((), _TRAINED),
    "spectrum_top_fraction": ((), _TRAINED),
    "jagged_restart_steps": ((), _CURVE),
    "lr_quadratic_warmup": ((), _CURVE),
    "lr_div_factor": ((), _CURVE),
    "cosine_constant_lr_ratio": ((0,), _CURVE),
    "log_sweep_min_lr": ((), _CURVE),
    "eta_min": ((), "no release of axolotl that hpclm knows has it; for a lowest rate give cosine_min_lr_ratio"),
    "optim_args": (("", {}), "optimizers have no other options; remove it"),
    "optim_target_modules": ((), "every weight has the same optimizer; remove it"),
    "adam_eps": ((), "write adam_epsilon"),
    "evaluation_strategy": (("no",), "write eval_strategy"),
    "rl": ((), _RL),
    "reward_model": ((), _RL),
    "process_reward_model": ((), _RL),
    "use_eaft": ((), _RL),
    "kd_trainer": ((), _RL),
    "trainer_cls": ((), _RL),
    "nemo_gym_enabled": ((), _RL),
    "diffusion": ((), _RL),
    "hatchery": ((), _EXTRA),
    "dense_mixer": ((), _EXTRA),
    "grokfast_alpha": ((), _EXTRA),
    "mora": ((), _EXTRA),
    "recipe": ((), _EXTRA),
    "save_compressed": ((), _EXTRA),
    "pretraining_dataset": ((), _RAW),
    "streaming": ((), "rows are prepared before training; remove it"),
    "pretraining_sample_concatenation": ((), _RAW),
    "context_parallel_size": ((1,), _PARALLEL),
    "sequence_parallel_degree": ((1,), _PARALLEL),
    "tensor_parallel_size": ((1,), _PARALLEL),
    "expert_parallel_size": ((1,), _PARALLEL),
    "model_config": ((), "the model is as its config.json says; change it there"),
    "model_kwargs": ((), "the model is as its config.json says; change it there"),
    "overrides_of_model_config": ((), "the model is as its config.json says; change it there"),
    "overrides_of_model_kwargs": ((), "the model is as its config.json says; change it there"),
    "rope_scaling": ((), "the model is as its config.json says; change it there"),
    "tokenizer_config": ((), "the tokenizer is the model's own; put its files beside the model"),
    "processor_type": ((), "this model reads images or sound, which rows may not have; give a model of text"),
    "processor_kwargs": ((), "this model reads images or sound, which rows may not have; give a model of text"),
    "role_boundaries": ((), "the chat template says who speaks"),
    "tokens": ((), _VOCABULARY),
    "added_tokens_overrides": ((), _VOCABULARY),
    "reinit_weights": ((), "the model's weights are where training begins; use task pretrain"),
    "chat_template_kwargs": ((), "a chat template has no options; write them into a template of your own"),
    "neftune_noise_alpha": ((0,), "there is no NEFTune noise; remove it"),
    "noisy_embedding_alpha": ((0,), "there is no NEFTune noise; remove it"),
    "use_pose": ((), "positions are those in the row; remove it"),
    "scaling_softmax": ((), "attention is the model's own; remove it"),
    "s2_attention": ((), "every token sees all before it in its row; remove it"),
    "max_packed_sequence_len": ((), "write sample_packing: true and sequence_len"),
    "curriculum_sampling": ((), "rows are drawn at random; remove it"),
    "dataset_exact_deduplication": ((), _ROWS),
    "dataset_shard_num": ((1,), _ROWS),
    "dataset_shard_idx": ((0,), _ROWS),
    "min_sample_len": ((0, 1, 2), _ROWS),
    "max_prompt_len": ((), _ROWS),
    "metric_for_best_model": (("loss", "eval_loss"), "the best checkpoint is that of lowest val_loss; remove it"),
    "resume_from_checkpoint": (
        (False, True),
        "a Trainer's checkpoint is not read; give its model, or hpclm resume RUN",
    ),
}
