"""The keys and values of the prompt-learning YAML files that NeMo and its launcher released, as flat lines.

Read from NVIDIA/NeMo, examples/nlp/language_modeling/conf/megatron_gpt_prompt_learning_config.yaml and
_inference.yaml, at v1.13.0 to v1.22.0, and from NVIDIA/NeMo-Megatron-Launcher, launcher_scripts/conf/,
prompt_learning/gpt3/squad.yaml and evaluation/prompt_gpt3/squad.yaml, at 23.03 to 24.05: every key of each, with its
value. Releases that are not here have the file of the one before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# by release: lines new or changed since the one before; a line with a key alone takes it out
TRAINING = {
    "1.13": """
name: megatron_virtual_prompt_gpt
trainer.devices: 1
trainer.accelerator: gpu
trainer.num_nodes: 1
trainer.precision: 16
trainer.logger: False
trainer.enable_checkpointing: False
trainer.replace_sampler_ddp: False
trainer.max_epochs: 3
trainer.max_steps: -1
trainer.log_every_n_steps: 10
trainer.val_check_interval: 1.0
trainer.gradient_clip_val: 1.0
trainer.resume_from_checkpoint: null
trainer.benchmark: False
exp_manager.explicit_log_dir: null
exp_manager.exp_dir: null
exp_manager.name: '${name}'
exp_manager.create_wandb_logger: False
exp_manager.wandb_logger_kwargs.project: null
exp_manager.wandb_logger_kwargs.name: null
exp_manager.resume_if_exists: True
exp_manager.resume_ignore_no_checkpoint: True
exp_manager.create_checkpoint_callback: True
exp_manager.checkpoint_callback_params.monitor: val_loss
exp_manager.checkpoint_callback_params.save_top_k: 2
exp_manager.checkpoint_callback_params.mode: min
exp_manager.checkpoint_callback_params.save_nemo_on_train_end: False
exp_manager.checkpoint_callback_params.filename: 'megatron_gpt_prompt_tune--{val_loss:.3f}-{step}'
exp_manager.checkpoint_callback_params.model_parallel_size: '${model.tensor_model_parallel_size}'
exp_manager.checkpoint_callback_params.save_best_model: True
model.seed: 1234
model.nemo_path: '${name}.nemo'
model.virtual_prompt_style: p-tuning
model.tensor_model_parallel_size: 1
model.pipeline_model_parallel_size: 1
model.global_batch_size: 8
model.micro_batch_size: 4
model.restore_path: null
model.language_model_path: '???'
model.save_nemo_on_validation_end: True
model.existing_tasks: [boolq, intent_and_slot]
model.new_tasks: [rte]
model.sequence_parallel: False
model.activations_checkpoint_granularity: null
model.activations_checkpoint_method: null
model.activations_checkpoint_num_layers: null
model.prompt_tuning.new_prompt_init_methods: [text]
model.prompt_tuning.new_prompt_init_text: [some init text goes here]
model.p_tuning.encoder_type: tpmlp
model.p_tuning.dropout: 0.0
model.p_tuning.num_layers: 2
model.p_tuning.encoder_hidden: 2048
model.p_tuning.init_std: 0.023
model.data.train_ds: [data/rte_train.jsonl]
model.data.validation_ds: [data/rte_val.jsonl]
model.data.add_eos: True
model.data.shuffle: True
model.data.num_workers: 8
model.data.pin_memory: True
model.data.train_cache_data_path: null
model.data.validation_cache_data_path: null
model.data.test_cache_data_path: null
model.data.load_cache: False
model.optim.name: fused_adam
model.optim.lr: 1e-4
model.optim.weight_decay: 0.01
model.optim.betas: [0.9, 0.98]
model.optim.sched.name: CosineAnnealing
model.optim.sched.warmup_steps: 50
model.optim.sched.min_lr: 0.0
model.optim.sched.constant_steps: 0
model.optim.sched.monitor: val_loss
model.optim.sched.reduce_on_plateau: False
""",
    "1.16": """
exp_manager.create_early_stopping_callback: True
exp_manager.early_stopping_callback_params.monitor: val_loss
exp_manager.early_stopping_callback_params.mode: min
exp_manager.early_stopping_callback_params.min_delta: 0.001
exp_manager.early_stopping_callback_params.patience: 10
exp_manager.early_stopping_callback_params.verbose: True
model.validation_global_batch_size: '${model.global_batch_size}'
model.validation_micro_batch_size: '${model.micro_batch_size}'
model.validation_drop_last: False
""",
    "1.17": """
model.data.max_seq_length: 1024
model.data.min_seq_length: 1
""",
    "1.18": """
exp_manager.checkpoint_callback_params.save_nemo_on_train_end: True
exp_manager.early_stopping_callback_params.strict: False
model.report_validation_metric: False
model.validation_metric: accuracy
model.inference.greedy: False
model.inference.top_k: 0
model.inference.top_p: 0.9
model.inference.temperature: 1.0
model.inference.tokens_to_generate: 30
model.inference.repetition_penalty: 1.2
model.inference.min_tokens_to_generate: 0
""",
    "1.21": """
trainer.use_distributed_sampler: False
trainer.replace_sampler_ddp
trainer.resume_from_checkpoint
""",
}
INFERENCE = {
    "1.13": """
inference.greedy: False
inference.top_k: 0
inference.top_p: 0.9
inference.temperature: 1.0
inference.add_BOS: True
inference.tokens_to_generate: 30
inference.all_probs: False
inference.repetition_penalty: 1.2
inference.min_tokens_to_generate: 0
inference.compute_logprob: False
trainer.devices: 1
trainer.num_nodes: 1
trainer.accelerator: gpu
trainer.logger: False
trainer.precision: 16
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
gpt_model_file: null
virtual_prompt_model_file: '???'
pred_file_path: '???'
data_paths: null
""",
    "1.15": """
num_workers: 8
""",
    "1.17": """
inference.batch_size: 1
""",
    "1.18": """
tensor_model_parallel_size: -1
pipeline_model_parallel_size: -1
""",
    "1.19": """
max_seq_length: 8192
""",
}
LAUNCHER_TRAINING = {
    "23.03": """
run.name: '${.task_name}_${.model_train_name}'
run.time_limit: '04:00:00'
run.dependency: singleton
run.convert_name: convert_nemo
run.model_train_name: gpt3_5b
run.convert_dir: '${base_results_dir}/${prompt_learning.run.model_train_name}/${prompt_learning.run.convert_name}'
run.task_name: squad
run.results_dir: '${base_results_dir}/${.model_train_name}/prompt_learning_${.task_name}'
trainer.devices: 8
trainer.num_nodes: 1
trainer.accelerator: gpu
trainer.precision: bf16
trainer.logger: False
trainer.enable_checkpointing: False
trainer.replace_sampler_ddp: False
trainer.max_epochs: 4
trainer.max_steps: -1
trainer.log_every_n_steps: 10
trainer.val_check_interval: 200
trainer.accumulate_grad_batches: 1
trainer.gradient_clip_val: 1.0
trainer.resume_from_checkpoint: null
exp_manager.explicit_log_dir: '${prompt_learning.run.results_dir}/results'
exp_manager.exp_dir: null
exp_manager.name: megatron_gpt_prompt
exp_manager.create_wandb_logger: False
exp_manager.wandb_logger_kwargs.project: nemo_gpt3_prompt
exp_manager.wandb_logger_kwargs.name: '${prompt_learning.run.name}'
exp_manager.resume_if_exists: True
exp_manager.resume_ignore_no_checkpoint: True
exp_manager.create_checkpoint_callback: True
exp_manager.checkpoint_callback_params.monitor: val_loss
exp_manager.checkpoint_callback_params.save_top_k: 5
exp_manager.checkpoint_callback_params.mode: min
exp_manager.checkpoint_callback_params.save_nemo_on_train_end: False
exp_manager.checkpoint_callback_params.filename: 'megatron_gpt_prompt_learn--{val_loss:.3f}-{step}'
exp_manager.checkpoint_callback_params.model_parallel_size: '${prompt_learning.model.model_parallel_size}'
exp_manager.checkpoint_callback_params.save_best_model: True
model.seed: 1234
model.nemo_path: '${prompt_learning.run.results_dir}/results/megatron_gpt_prompt.nemo'
model.virtual_prompt_style: p-tuning
model.tensor_model_parallel_size: 1
model.pipeline_model_parallel_size: 1
model.model_parallel_size: '${multiply:${.tensor_model_parallel_size}, ${.pipeline_model_parallel_size}}'
model.encoder_seq_length: 2048
model.global_batch_size: 64
model.micro_batch_size: 8
model.restore_path: null
model.language_model_path: '${prompt_learning.run.convert_dir}/results/megatron_gpt.nemo'
model.existing_tasks: []
model.new_tasks: [squad]
model.sequence_parallel: False
model.prompt_learning.new_prompt_init_methods: null
model.prompt_learning.new_prompt_init_text: null
model.p_tuning.encoder_type: tpmlp
model.p_tuning.dropout: 0.0
model.p_tuning.num_layers: 2
model.p_tuning.encoder_hidden: 2048
model.p_tuning.init_std: 0.023
model.data.train_ds: ['${data_dir}/prompt_data/v1.1/squad_train.jsonl']
model.data.validation_ds: ['${data_dir}/prompt_data/v1.1/squad_val.jsonl']
model.data.add_eos: True
model.data.shuffle: True
model.data.num_workers: 4
model.data.pin_memory: True
model.optim.name: fused_adam
model.optim.lr: 0.0002
model.optim.weight_decay: 0.01
model.optim.betas: [0.9, 0.98]
model.optim.sched.name: CosineAnnealing
model.optim.sched.warmup_steps: 50
model.optim.sched.constant_steps: 10
model.optim.sched.min_lr: 0.0
model.optim.sched.monitor: val_loss
model.optim.sched.reduce_on_plateau: False
""",
    "23.08.02": """
trainer.use_distributed_sampler: False
trainer.replace_sampler_ddp
""",
}
LAUNCHER_EVALUATION = {
    "23.03": """
run.name: '${.eval_name}_${.model_train_name}'
run.time_limit: '4:00:00'
run.nodes: '${divide_ceil:${evaluation.model.model_parallel_size}, 8}'
run.ntasks_per_node: '${divide_ceil:${evaluation.model.model_parallel_size}, ${.nodes}}'
run.eval_name: eval_prompt_squad
run.model_train_name: gpt3_5b
run.tasks: prompt
run.prompt_learning_dir: '${base_results_dir}/${.model_train_name}/prompt_learning_squad'
run.results_dir: '${base_results_dir}/${.model_train_name}/${.eval_name}'
model.model_type: nemo-gpt3-prompt
model.nemo_model: '${evaluation.run.prompt_learning_dir}/results/megatron_gpt_prompt.nemo'
model.tensor_model_parallel_size: 2
model.pipeline_model_parallel_size: 1
model.model_parallel_size: '${multiply:${.tensor_model_parallel_size}, ${.pipeline_model_parallel_size}}'
model.precision: bf16
model.eval_batch_size: 4
model.prompt_dataset_paths: '${data_dir}/prompt_data/v1.1/squad_val.jsonl'
model.disable_special_tokens: False
""",
}

# The launcher's config.yaml: what its other files refer to.
LAUNCHER_CONFIG = """
launcher_scripts_path: '???'
data_dir: '${launcher_scripts_path}/data'
base_results_dir: '${launcher_scripts_path}/results'
training_config: '${hydra:runtime.choices.training}'
"""
SQUAD = {
    "taskname": "squad",
    "prompt_template": "<|VIRTUAL_PROMPT_0|>Context: {context} Question: {question} Answer: {answer}",
    "total_virtual_tokens": 10,
    "virtual_token_splits": [10],
    "truncate_field": "context",
    "answer_field": "answer",
    "answer_only_loss": True,
}


def same_file_as(table: dict[str, str], release: str) -> str:
    """The release whose file it has."""
    return max((one for one in table if numbers_of(one) <= numbers_of(release)), key=numbers_of)


def numbers_of(release: str) -> list[int]:
    return [int(part) for part in release.split(".")]


def flat(table: dict[str, str], release: str) -> dict[str, Any]:
    """Every key of a release's file, with its value."""
    found: dict[str, Any] = {}
    for name, text in table.items():
        for line in text.strip().splitlines():
            key, colon, value = line.partition(": ")
            if colon:
                found[key] = yaml.safe_load(value)
            else:
                del found[key]
        if name == release:
            return found
    raise KeyError(release)


def write(path: Path, table: dict[str, str], release: str, templates: list[dict[str, Any]] | None = None) -> Path:
    """A file with the keys of a release, nested as there."""
    tree: dict[str, Any] = {}
    for key, value in flat(table, release).items():
        *sections, last = key.split(".")
        entries = tree
        for section in sections:
            entries = entries.setdefault(section, {})
        entries[last] = value
    if templates is not None:
        tree["model"]["task_templates"] = templates
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path
