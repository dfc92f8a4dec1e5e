"""Prompt learning: the trainable virtual tokens of prompt-tuning and p-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from hpclm.adapters.ranks.p_tuning import PTuning
from hpclm.adapters.ranks.prompt_tuning import PromptTuning
from hpclm.adapters.ranks.soft_prompts import SoftPrompts
from hpclm.core.spec import PromptSpec, TaskTemplate
from hpclm.engines.megatron.ranks.gpt_model import mark_tensor_parallel


@dataclass(frozen=True)
class PromptsCard:
    """What is needed to build soft prompts again: `prompts.json` beside their tensors.

    Attributes:
        task: `p-tuning` or `prompt-tuning`.
        task_templates: every task of the table, in its order.
        kept: names of the frozen ones among them, trained elsewhere. It is the key in `prompts.json`, which checkpoints
            of earlier versions have, too.
        name_lengths: see `PTuning`.
    """

    task: str
    prompt: PromptSpec | None
    task_templates: list[TaskTemplate]
    kept: list[str] = field(default_factory=list)
    name_lengths: dict[str, int] | None = None
    base: str | None = None


def build_prompts(card: PromptsCard, config: TransformerConfig, seed: int, device: torch.device) -> SoftPrompts:
    """The soft prompts of a card, initialised the same whatever the split."""
    frozen = frozenset(card.kept)
    if card.task == "p-tuning":
        assert card.prompt is not None
        prompts: SoftPrompts = PTuning(config, card.task_templates, card.prompt, frozen, card.name_lengths)
    else:
        prompts = PromptTuning(config, card.task_templates, frozen)
    prompts.initialize(seed)
    prompts.to(device)
    mark_tensor_parallel(prompts)
    return prompts
