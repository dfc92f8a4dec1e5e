"""NeMo 1.x prompt learning as an external program: its configuration, from the sections of a recipe.

Source: NVIDIA/NeMo r1.16 (the 23.02 container), examples/nlp/language_modeling/: conf/
megatron_gpt_prompt_learning_config.yaml with megatron_gpt_prompt_learning.py, and conf/
megatron_gpt_prompt_learning_inference.yaml with megatron_gpt_prompt_learning_eval.py. The configuration is passed as a
file, not as overrides: Hydra would interpret quotes and brackets in paths and templates.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hpclm.core.layout import RunPaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import ProgramSpec, PromptData, TaskTemplate
from hpclm.engines.nemo.section import Nemo
from hpclm.planning.specs import RUN_DIR, STAGE_DIR
from hpclm.planning.stage_context import StageContext

PROMPTS, PREDICTIONS, CONFIG = "prompts.nemo", "predictions.txt", "hpclm_nemo"
# A line of indented JSON whose value is such a number.
_NO_DOT = re.compile(r'^(\s*(?:"(?:[^"\\]|\\.)*": )?)(-?\d+)(e[-+]\d+)(,?)$')
_PRECISION = {"fp32": 32, "fp16": 16, "bf16": "bf16"}
_EXAMPLES = "examples/nlp/language_modeling"


def tuning(
    stage: StageContext, split: ParallelSpec, data: PromptData, templates: tuple[TaskTemplate, ...]
) -> ProgramSpec:
    """megatron_gpt_prompt_learning.py for a p-tuning or prompt-tuning stage."""
    recipe = stage.recipe
    assert recipe.trainer is not None
    assert recipe.batch is not None
    trainer = _trainer(stage, split) | {
        "enable_checkpointing": False,
        "replace_sampler_ddp": False,
        "max_epochs": recipe.trainer.max_epochs or -1,
        "max_steps": recipe.trainer.max_steps or -1,
        "log_every_n_steps": recipe.trainer.log_interval_steps,
        "val_check_interval": recipe.trainer.val_check_interval,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": recipe.trainer.gradient_clip_norm,
        "resume_from_checkpoint": None,
        "benchmark": False,
    }
    model = {
        "seed": recipe.trainer.seed,
        "nemo_path": f"{STAGE_DIR}/{PROMPTS}",
        "virtual_prompt_style": recipe.task,
        "tensor_model_parallel_size": split.tensor,
        "pipeline_model_parallel_size": split.pipeline,
        "global_batch_size": recipe.batch.global_size,
        "micro_batch_size": recipe.batch.micro_size,
        "restore_path": None,
        "language_model_path": _section(stage).model,
        "existing_tasks": [],
        "new_tasks": [one.taskname for one in templates],
        "task_templates": [_template(one) for one in templates],
        "prompt_tuning": {
            "new_prompt_init_methods": [one.prompt_init for one in templates],
            "new_prompt_init_text": [one.prompt_init_text for one in templates],
        },
        "p_tuning": _encoder(stage),
        "data": _rows(data),
        "optim": _optim(stage),
    }
    config = {
        "name": "hpclm",
        "trainer": trainer,
        "exp_manager": _experiment(split, recipe.checkpoint.keep_best),
        "model": model,
    }
    return _program(stage, "megatron_gpt_prompt_learning.py", config, [PROMPTS])


def _rows(data: PromptData) -> dict[str, Any]:
    return {
        "train_ds": data.train,
        "validation_ds": data.validation,
        "add_eos": data.add_eos,
        "add_bos": data.add_bos,
        "max_seq_length": data.max_seq_length,
        "shuffle": True,
        "num_workers": 8,
        "pin_memory": True,
    }


def evaluation(stage: StageContext, split: ParallelSpec, data: PromptData) -> ProgramSpec:
    """megatron_gpt_prompt_learning_eval.py, with the prompts of an earlier stage or of the .nemo file that is named."""
    recipe, own = stage.recipe, _section(stage)
    prompts = own.prompts or str(RunPaths(Path(RUN_DIR)).stage(str(recipe.prompts)).root / PROMPTS)
    generation = recipe.generation
    config = {
        "inference": {
            "greedy": generation.greedy if generation else True,
            "top_k": generation.top_k if generation else 0,
            "top_p": generation.top_p if generation else 1.0,
            "temperature": generation.temperature if generation else 1.0,
            # training's default; NeMo's own for inference is True, which silently shifts every prompt
            "add_BOS": data.add_bos,
            "tokens_to_generate": generation.max_new_tokens if generation else 30,
            "all_probs": False,
            "repetition_penalty": 1.0,
            "min_tokens_to_generate": 0,
            "compute_logprob": False,
            "batch_size": generation.batch_size if generation else 16,
        },
        "trainer": _trainer(stage, split),
        "tensor_model_parallel_size": split.tensor,
        "pipeline_model_parallel_size": split.pipeline,
        "gpt_model_file": own.model,
        "virtual_prompt_model_file": prompts,
        "pred_file_path": f"{STAGE_DIR}/{PREDICTIONS}",
        "data_paths": data.test,
    }
    return _program(stage, "megatron_gpt_prompt_learning_eval.py", config, [PREDICTIONS])


def _section(stage: StageContext) -> Nemo:
    found = stage.recipe.own_section("nemo", Nemo)
    assert found is not None
    return found


def _trainer(stage: StageContext, split: ParallelSpec) -> dict[str, Any]:
    precision = stage.recipe.trainer.precision if stage.recipe.trainer else "fp32"
    return {
        "devices": split.devices_per_node,
        "num_nodes": split.nodes,
        "accelerator": "gpu" if stage.recipe.resources.device == "gpu" else "cpu",
        "logger": False,
        "precision": _PRECISION[precision],
    }


def _experiment(split: ParallelSpec, keep: int | str) -> dict[str, Any]:
    return {
        "explicit_log_dir": f"{STAGE_DIR}/checkpoints",
        "exp_dir": None,
        "name": "hpclm",
        "create_wandb_logger": False,
        "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True,
        "create_checkpoint_callback": True,
        "checkpoint_callback_params": {
            "monitor": "val_loss",
            "save_top_k": -1 if keep == "all" else keep,
            "mode": "min",
            "save_nemo_on_train_end": False,
            "filename": "hpclm--{val_loss:.3f}-{step}",
            "model_parallel_size": split.tensor * split.pipeline,
            "save_best_model": True,
        },
    }


def _template(one: TaskTemplate) -> dict[str, Any]:
    return {
        "taskname": one.taskname,
        "prompt_template": one.prompt_template,
        "total_virtual_tokens": one.total_virtual_tokens,
        "virtual_token_splits": one.virtual_token_splits,
        "truncate_field": one.truncate_field,
        "answer_only_loss": one.answer_only_loss,
        "answer_field": one.answer_field,
    }


def _encoder(stage: StageContext) -> dict[str, Any]:
    written = stage.recipe.prompt
    if written is None:
        return {"encoder_type": "tpmlp", "dropout": 0.0, "num_layers": 2, "encoder_hidden": 2048, "init_std": 0.023}
    return {
        "encoder_type": written.encoder,
        "dropout": written.encoder_dropout,
        "num_layers": written.encoder_layers,
        "encoder_hidden": written.encoder_hidden,
        "init_std": written.encoder_init_std,
    }


def _optim(stage: StageContext) -> dict[str, Any]:
    written = stage.recipe.optim
    assert written is not None
    return {
        "name": "fused_adam",
        "lr": written.lr,
        "weight_decay": written.weight_decay,
        "betas": list(written.betas),
        "sched": {
            "name": "CosineAnnealing",
            **_steps("warmup", written.schedule.warmup_steps, written.schedule.warmup_ratio),
            "min_lr": written.min_lr,
            **_steps("constant", written.schedule.constant_steps, written.schedule.constant_ratio),
            "monitor": "val_loss",
            "reduce_on_plateau": False,
        },
    }


def _steps(what: str, steps: int, ratio: float | None) -> dict[str, int | float]:
    return {f"{what}_steps": steps} if ratio is None else {f"{what}_ratio": ratio}


def _program(stage: StageContext, script: str, config: dict[str, Any], outputs: list[str]) -> ProgramSpec:
    nemo = _section(stage)
    argv = [
        "python",
        "-u",
        f"{_braces(nemo.folder)}/{_EXAMPLES}/{script}",
        "--config-path={stage_dir}",
        f"--config-name={CONFIG}",
    ]
    return ProgramSpec(argv=argv, outputs=outputs, files={f"{CONFIG}.yaml": as_yaml(config)})


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def as_yaml(config: dict[str, Any]) -> str:
    """JSON, which is also YAML, except for numbers like 1e-05: YAML 1.1 reads them as text without a dot."""
    lines = json.dumps(config, indent=2, ensure_ascii=True).splitlines()
    return "".join(_NO_DOT.sub(r"\1\2.0\3\4", line) + "\n" for line in lines)
