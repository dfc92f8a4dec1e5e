"""Generation: what the cache and the padding must not change, and what sampling must obey."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hpclm.core.ranks.seeds import named_generator
from hpclm.core.spec import GenerationSpec, ModelSpec, ParallelSpec
from hpclm.data.ranks.batches import GenerationBatch
from hpclm.engines.megatron.ranks.generation import Generator, prefill_mask, sample
from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from tests.support.engine_harness import MODERN, SMALL

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
EOS = 300


def model_of(spec: ModelSpec, groups: Groups) -> LanguageModel:
    config = transformer_config(spec, ParallelSpec(1, 1, 1, 1, 1, 1), "fp32", groups.device, variable_lengths=True)
    gpt = build_gpt(spec, config, groups)
    # large weights, so that the untrained model's outputs differ clearly
    initialize_weights(gpt, replace(spec, init_std=0.5), 3)
    made = LanguageModel(config, gpt, None, frozen=True)
    made.eval()
    return made


def left_padded(prompts: list[list[int]]) -> GenerationBatch:
    length = max(map(len, prompts))
    attention = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
    return GenerationBatch(
        tokens=torch.tensor([[0] * (length - len(p)) + p for p in prompts]),
        attention=attention,
        position_ids=(attention.long().cumsum(1) - 1).clamp(min=0),
        virtual_index=torch.full((len(prompts), length), -1),
        task=torch.zeros(len(prompts), dtype=torch.int64),
    )


@torch.no_grad()
def recomputed(model: LanguageModel, prompt: list[int], count: int, vocab_size: int) -> list[int]:
    """Greedy tokens by running the whole sequence anew for each."""
    tokens = list(prompt)
    for _ in range(count):
        ids = torch.tensor([tokens])
        logits = model.gpt(ids, torch.arange(len(tokens)).unsqueeze(0), None)
        tokens.append(int(logits[0, -1, :vocab_size].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("spec", [SMALL, MODERN], ids=["gpt2", "modern"])
def test_cache_and_padding_change_no_answer(alone: Groups, spec: ModelSpec) -> None:
    model = model_of(spec, alone)
    generator = Generator(model, alone, GenerationSpec(max_new_tokens=8), vocab_size=384, eos_id=-7)
    assert generator(left_padded(PROMPTS), range(3)) == [recomputed(model, prompt, 8, 384) for prompt in PROMPTS]


def test_padding_rows_of_the_vocabulary_are_never_chosen(alone: Groups) -> None:
    model = model_of(SMALL, alone)
    generator = Generator(model, alone, GenerationSpec(max_new_tokens=20), vocab_size=16, eos_id=-7)
    assert max(token for answer in generator(left_padded(PROMPTS), range(3)) for token in answer) < 16


def test_an_answer_ends_at_the_end_token_and_the_others_go_on(alone: Groups) -> None:
    model = model_of(SMALL, alone)
    spec = GenerationSpec(max_new_tokens=8)
    whole = Generator(model, alone, spec, vocab_size=384, eos_id=-7)(left_padded(PROMPTS), range(3))
    eos = whole[0][3]
    cut = Generator(model, alone, spec, vocab_size=384, eos_id=eos)(left_padded(PROMPTS), range(3))
    assert cut == [answer[: answer.index(eos)] if eos in answer else answer for answer in whole]


def test_what_a_row_draws_does_not_depend_on_its_batch(alone: Groups) -> None:
    model = model_of(SMALL, alone)
    spec = GenerationSpec(max_new_tokens=6, greedy=False, temperature=1.5)
    generator = Generator(model, alone, spec, vocab_size=384, eos_id=-7)
    together = generator(left_padded(PROMPTS), [4, 9, 2])
    assert [
        generator(left_padded([prompt]), [index])[0] for prompt, index in zip(PROMPTS, (4, 9, 2), strict=True)
    ] == together


def drawn(logits: list[float], count: int, **changes: Any) -> torch.Tensor:
    spec = GenerationSpec(greedy=False, **changes)
    rows = torch.tensor(logits).repeat(count, 1)
    picked = sample(rows, spec, [named_generator(1, str(number)) for number in range(count)])
    return torch.bincount(picked, minlength=len(logits)) / count


LOGITS = [2.0, 1.0, 0.0, -1.0]


def test_draws_follow_the_softmax_and_the_temperature() -> None:
    torch.testing.assert_close(drawn(LOGITS, 4000), torch.tensor(LOGITS).softmax(0), atol=0.025, rtol=0)
    torch.testing.assert_close(
        drawn(LOGITS, 4000, temperature=2.0), (torch.tensor(LOGITS) / 2).softmax(0), atol=0.025, rtol=0
    )


@pytest.mark.parametrize(
    ("changes", "allowed"), [({"top_k": 1}, 1), ({"top_k": 2}, 2), ({"top_p": 0.01}, 1), ({"top_p": 0.7}, 2)]
)
def test_top_k_and_top_p_bound_the_choice(changes: dict[str, Any], allowed: int) -> None:
    shares = drawn(LOGITS, 400, **changes)
    assert (shares > 0).sum() == allowed
    assert (shares[:allowed] > 0).all()


def test_a_mask_lets_no_row_look_at_padding_or_ahead() -> None:
    mask = prefill_mask(torch.tensor([[False, True, True]]))[0, 0]
    assert mask.tolist() == [[True, False, False], [False, True, False], [False, True, True]]
