"""Answers as users of Hugging Face and NeMo ask for them: penalties, shortest lengths, end strings."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest
import torch

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import GenerationSpec
from hpclm.data.ranks.batches import GenerationBatch
from hpclm.data.templates import Example
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.answering import Answerer
from hpclm.engines.megatron.ranks.end_strings import EndStrings
from hpclm.engines.megatron.ranks.generation import Generator
from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from tests.support.engine_harness import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = Tokenizer.train(["path name self node list dict file mode type args item data\n"] * 9, 320)
SIZES = argparse.Namespace(
    layers=2, hidden=32, heads=4, vocab=SMALL.padded_vocab_size, tokens=SMALL.max_position_embeddings - 10
)
ROWS = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [30, 31, 30, 31, 30]]


@pytest.fixture(scope="module")
def model(alone: Groups) -> LanguageModel:
    config = transformer_config(SMALL, ParallelSpec(1, 1, 1, 1, 1, 1), "fp32", alone.device, variable_lengths=True)
    gpt = build_gpt(SMALL, config, alone)
    # large weights, so that the untrained model's outputs differ clearly
    initialize_weights(gpt, replace(SMALL, init_std=0.5), 3)
    made = LanguageModel(config, gpt, None, frozen=True)
    made.eval()
    return made


@pytest.fixture(scope="module")
def peer(model: LanguageModel) -> Any:
    """transformers' GPT-2 with the same weights."""
    from transformers import GPT2LMHeadModel

    from bench import prompt_learning as bench

    made = GPT2LMHeadModel(bench.gpt2_config(SIZES)).eval()  # type: ignore[no-untyped-call]
    made.load_state_dict(bench._as_gpt2(model.gpt.state_dict(), SIZES), strict=False)
    return made


def answers(model: LanguageModel, alone: Groups, spec: GenerationSpec, *, eos: int = 0) -> list[list[int]]:
    rows = torch.tensor(ROWS)
    batch = GenerationBatch(
        tokens=rows,
        lengths=(rows.shape[1],) * len(rows),
        position_ids=torch.arange(rows.shape[1]).expand_as(rows),
        virtual_index=torch.full_like(rows, -1),
        task=torch.zeros(len(rows), dtype=torch.int64),
    )
    return Generator(model, alone, spec, vocab_size=SIZES.vocab, eos_id=eos)(batch, range(len(rows)))


def peers(peer: Any, *, eos: int, count: int, **settings: Any) -> list[list[int]]:
    rows = torch.tensor(ROWS)
    made = peer.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=383,
        **settings,
    )
    return [[token for token in row[5:].tolist() if token not in (383, eos)] for row in made]


@pytest.mark.parametrize("penalty", [1.3, 5.0, 0.5])
def test_the_repetition_penalty_is_that_of_transformers(
    model: LanguageModel, alone: Groups, peer: Any, penalty: float
) -> None:
    ours = answers(model, alone, GenerationSpec(max_new_tokens=12, repetition_penalty=penalty))
    assert ours == peers(peer, eos=0, count=12, repetition_penalty=penalty)
    assert ours != answers(model, alone, GenerationSpec(max_new_tokens=12))


def test_no_answer_ends_before_its_shortest_length(model: LanguageModel, alone: Groups, peer: Any) -> None:
    eos = answers(model, alone, GenerationSpec(max_new_tokens=8), eos=383)[0][1]
    short = answers(model, alone, GenerationSpec(max_new_tokens=8), eos=eos)
    assert len(short[0]) == 1
    ours = answers(model, alone, GenerationSpec(max_new_tokens=8, min_new_tokens=5), eos=eos)
    assert min(map(len, ours)) >= 5
    assert ours == peers(peer, eos=eos, count=8, min_new_tokens=5)


def example(text: str, index: int) -> Example:
    tokens = TOKENIZER.encode(text)
    return Example(tokens, [-1] * len(tokens), [0.0] * len(tokens), "task", 0, index, text, None)


def test_an_answer_ends_before_the_first_of_the_end_strings(model: LanguageModel, alone: Groups) -> None:
    examples = [example("path name self", 0), example("node list", 1), example("dict file mode type", 2)]
    whole = Answerer(alone, model, TOKENIZER, GenerationSpec(max_new_tokens=12, batch_size=2)).texts(examples)
    end = whole[0][4:7]
    spec = GenerationSpec(max_new_tokens=12, batch_size=2, end_strings=[end, "\x00never"])
    answerer = Answerer(alone, model, TOKENIZER, spec)
    assert answerer.texts(examples) == [text.split(end)[0] for text in whole]
    made = {e.index: answer for some in answerer.stream(examples) for e, answer in some}
    assert made[0].tokens < 12
    assert not made[0].at_limit


def test_a_special_token_among_the_end_strings_ends_as_the_end_token() -> None:
    ends = EndStrings(["<|endoftext|>", "\n\n"], TOKENIZER)
    assert ends.ids == [TOKENIZER.eos_id]
    assert ends.texts == ["\n\n"]


def test_an_end_string_over_several_tokens_and_characters_is_seen() -> None:
    ends = EndStrings(["é日"], TOKENIZER)
    ids = TOKENIZER.encode("name é日")
    assert [ends.reached(ids[:count]) for count in range(1, len(ids) + 1)] == [False] * (len(ids) - 1) + [True]
    assert ends.cut("name é日 x") == ("name ", True)
    assert ends.cut("name") == ("name", False)
