"""Prompt learning: the trainable virtual tokens of prompt-tuning and p-tuning."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from hpclm.plan.spec import StageSpec
from hpclm.worker.engine.model import mark_tensor_parallel
from hpclm.worker.prompts.base import SoftPrompts
from hpclm.worker.prompts.p_tuning import PTuning
from hpclm.worker.prompts.prompt_tuning import PromptTuning


def build_prompts(
    spec: StageSpec, task: str, config: TransformerConfig, seed: int, device: torch.device
) -> SoftPrompts:
    """The soft prompts of a recipe's task templates, initialised the same whatever the split.

    Args:
        task: `p-tuning` or `prompt-tuning` (an evaluation builds those of the stage it evaluates).
    """
    if task == "p-tuning":
        assert spec.prompt is not None
        prompts: SoftPrompts = PTuning(config, spec.templates, spec.prompt)
    else:
        prompts = PromptTuning(config, spec.templates)
    prompts.initialize(seed)
    prompts.to(device)
    mark_tensor_parallel(prompts)
    return prompts
