"""Soft prompts from their card."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.p_tuning import PTuning
from hpclm.adapters.ranks.prompt_tuning import PromptTuning
from hpclm.adapters.ranks.soft_prompts import SoftPrompts
from hpclm.formats.ranks.parameters import mark_tensor_parallel


def build_prompts(card: PromptsCard, config: TransformerConfig, seed: int, device: torch.device) -> SoftPrompts:
    """The soft prompts of a card, initialised the same way for every split."""
    frozen = frozenset(card.kept)
    with device:
        if card.task == "p-tuning":
            assert card.prompt is not None
            prompts: SoftPrompts = PTuning(config, card.task_templates, card.prompt, frozen, card.name_lengths)
        else:
            prompts = PromptTuning(config, card.task_templates, frozen)
    prompts.initialize(seed)
    mark_tensor_parallel(prompts)
    return prompts
