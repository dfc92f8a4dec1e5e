"""Names in checkpoints of soft prompts: those that every version before has written, whatever the code calls them."""

from __future__ import annotations

import pytest
import torch

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.building import build_prompts
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import from_dict, to_dict
from hpclm.core.spec import PromptSpec, TaskTemplate
from hpclm.engines.megatron.ranks.gpt_model import transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from tests.support.engine_harness import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")

TEMPLATES = [TaskTemplate("old", "", 4, [4]), TaskTemplate("new", "", 3, [3])]
CARDS = {
    "prompt-tuning": (PromptsCard("prompt-tuning", None, TEMPLATES, kept=["old"]), {"prompts.free.task_new"}),
    "p-tuning": (
        PromptsCard("p-tuning", PromptSpec("mlp", 8, 2), TEMPLATES, kept=["old"]),
        {
            "prompts.inputs.task_new",
            *(f"prompts.encoder.{layer}.{what}" for layer in (0, 2) for what in ("weight", "bias")),
        },
    ),
}


@pytest.mark.parametrize("task", CARDS)
def test_tensors_keep_their_names(alone: Groups, task: str) -> None:
    card, trainable = CARDS[task]
    config = transformer_config(SMALL, ParallelSpec(1, 1, 1, 1, 1, 1), "fp32", alone.device, variable_lengths=True)
    prompts = build_prompts(card, config, 1, alone.device)
    table = torch.randn(4, SMALL.hidden_size)
    prompts.set_frozen(TEMPLATES[0], table)
    stored = {shard.key: shard.data for shard in prompts.shards()}
    assert set(stored) == {"prompts.kept.task_old", *trainable}
    assert torch.equal(stored["prompts.kept.task_old"], table)
    # loading writes into the shards
    stored["prompts.kept.task_old"].zero_()
    assert prompts()[0].count_nonzero() == 0


def test_the_card_keeps_its_keys() -> None:
    card, _ = CARDS["prompt-tuning"]
    written = to_dict(card)
    assert set(written) == {"task", "prompt", "task_templates", "kept", "name_lengths", "base", "semantics"}
    assert from_dict(PromptsCard, written) == card
