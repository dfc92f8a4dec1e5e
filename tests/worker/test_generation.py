"""Generation: what the cache and the padding must not change, and what sampling must obey."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.ranks.seeds import named_generator
from hpclm.core.spec import GenerationSpec, ModelSpec
from hpclm.data.ranks.batches import GenerationBatch
from hpclm.data.templates import Example
from hpclm.engines.megatron.ranks import cuda_graph
from hpclm.engines.megatron.ranks.decode_graph import DecodeGraph
from hpclm.engines.megatron.ranks.end_strings import EndStrings
from hpclm.engines.megatron.ranks.generation import Generator, sample
from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.key_value_cache import KeyValueCache
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from tests.support import graph_standin
from tests.support.engine_harness import MODERN, SMALL

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
EOS = 300


class EndsAt(EndStrings):
    """An answer ends after the first of these tokens."""

    def __init__(self, tokens: set[int]) -> None:
        self.tokens, self.ids = tokens, list[int]()

    def reached(self, answer: list[int]) -> bool:
        return answer[-1] in self.tokens

    def shortened(self, answer: list[int]) -> list[int]:
        return next((answer[: n + 1] for n, token in enumerate(answer) if token in self.tokens), answer)


def model_of(spec: ModelSpec, groups: Groups) -> LanguageModel:
    config = transformer_config(spec, ParallelSpec(1, 1, 1, 1, 1, 1), "fp32", groups.device, variable_lengths=True)
    gpt = build_gpt(spec, config, groups)
    # large weights, so that the untrained model's outputs differ clearly
    initialize_weights(gpt, replace(spec, init_std=0.5), 3)
    made = LanguageModel(config, gpt, None, frozen=True)
    made.eval()
    return made


def padded(prompts: list[list[int]]) -> GenerationBatch:
    length = max(map(len, prompts))
    return GenerationBatch(
        tokens=torch.tensor([p + [0] * (length - len(p)) for p in prompts]),
        position_ids=torch.arange(length).repeat(len(prompts), 1),
        virtual_index=torch.full((len(prompts), length), -1),
        task=torch.zeros(len(prompts), dtype=torch.int64),
        lengths=tuple(map(len, prompts)),
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
    assert generator(padded(PROMPTS), range(3)) == [recomputed(model, prompt, 8, 384) for prompt in PROMPTS]


def test_attending_to_a_rounded_number_of_keys_changes_no_answer(alone: Groups) -> None:
    """As generation by CUDA graphs does, in whose shapes the number does not change with each token."""
    model = model_of(MODERN, alone)
    generator = Generator(model, alone, GenerationSpec(max_new_tokens=80), vocab_size=384, eos_id=-7)
    whole = generator(padded(PROMPTS), range(3))
    decode = generator._decode
    spans = set()

    def rounded(tokens: torch.Tensor, cache: KeyValueCache) -> torch.Tensor | None:
        cache.round_span()
        spans.add(cache.span)
        return decode(tokens, cache)

    generator._decode = rounded  # type: ignore[method-assign]
    assert generator(padded(PROMPTS), range(3)) == whole
    assert spans == {64, 85}


@pytest.mark.parametrize("size", [2, 3, 5])
def test_graphs_of_a_token_belong_to_their_rows(alone: Groups, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Rows come and go, and caches of other rows have the same sizes."""
    graphs: list[graph_standin.Graph] = []

    def captured(work: Any, pool: Any) -> Any:
        graph, made = graph_standin.captured(work, pool)
        graphs.append(graph)
        return graph, made

    monkeypatch.setattr(cuda_graph, "captured", captured)
    model = model_of(MODERN, alone)
    prompts = [[20 + n, *range(5, 5 + n % 4)] for n in range(13)]
    settings = GenerationSpec(max_new_tokens=9, batch_size=size)
    plain = Generator(model, alone, settings, vocab_size=384, eos_id=-7)
    whole = [plain(padded([prompt]), [n])[0] for n, prompt in enumerate(prompts)]
    ends = EndsAt({row[n % 9] for n, row in enumerate(whole[:4])})
    generator = Generator(model, alone, settings, vocab_size=384, eos_id=-7, ends=ends)
    generator.graph = DecodeGraph()
    made: dict[int, list[int]] = {}
    for some in generator.stream(asked(prompts), 0):
        made |= some
    assert [made[n] for n in range(13)] == [ends.shortened(row) for row in whole]
    # one row after the other, each with a cache of its own
    alike = [[30 + n, 5, 6] for n in range(3)]
    for n, prompt in enumerate(alike):
        assert generator(padded([prompt]), [n])[0] == ends.shortened(plain(padded([prompt]), [n])[0])
    assert sum(graph.replays for graph in graphs) > 5
    # nothing is held by a cycle: keys and values are most of a GPU's memory
    gone = weakref.ref(generator)
    generator.graph = None
    graphs.clear()
    del generator
    assert gone() is None


def test_padding_rows_of_the_vocabulary_are_never_chosen(alone: Groups) -> None:
    model = model_of(SMALL, alone)
    generator = Generator(model, alone, GenerationSpec(max_new_tokens=20), vocab_size=16, eos_id=-7)
    assert max(token for answer in generator(padded(PROMPTS), range(3)) for token in answer) < 16


def test_an_answer_ends_at_the_end_token_and_the_others_go_on(alone: Groups) -> None:
    model = model_of(SMALL, alone)
    spec = GenerationSpec(max_new_tokens=8)
    whole = Generator(model, alone, spec, vocab_size=384, eos_id=-7)(padded(PROMPTS), range(3))
    eos = whole[0][3]
    cut = Generator(model, alone, spec, vocab_size=384, eos_id=eos)(padded(PROMPTS), range(3))
    assert cut == [answer[: answer.index(eos)] if eos in answer else answer for answer in whole]


def asked(prompts: list[list[int]]) -> list[Example]:
    return [Example(p, [-1] * len(p), [0.0] * len(p), "task", 0, n, "", None) for n, p in enumerate(prompts)]


@pytest.mark.parametrize("size", [1, 3, 4, 20])
@pytest.mark.parametrize("spec", [SMALL, MODERN], ids=["gpt2", "modern"])
def test_rows_take_the_places_of_those_that_end_and_change_no_other(alone: Groups, spec: ModelSpec, size: int) -> None:
    """Rows of many lengths, whose answers end one after the other."""
    model = model_of(spec, alone)
    prompts = [[20 + n, *range(5, 5 + n % 7)] for n in range(16)]
    whole = [recomputed(model, prompt, 12, 384) for prompt in prompts]
    sizes: list[int] = []

    class Counted(Generator):
        def _choose(self, logits: torch.Tensor | None, rows: int, generators: list[torch.Generator]) -> torch.Tensor:
            sizes.append(rows)
            return super()._choose(logits, rows, generators)

    end = EndsAt({row[n % 12] for n, row in enumerate(whole[:8])})
    settings = GenerationSpec(max_new_tokens=12, batch_size=size)
    generator = Counted(model, alone, settings, vocab_size=384, eos_id=-7, ends=end)
    made: dict[int, list[int]] = {}
    for some in generator.stream(asked(prompts), 0):
        assert not set(some) & set(made)
        made |= some
    assert [made[n] for n in range(16)] == [end.shortened(row) for row in whole]
    assert max(sizes) <= size
    steps = max(len(end.shortened(row)) for row in whole)
    if size == 20:
        assert min(sizes) < 16
        assert len(sizes) == steps


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.3}, {"min_new_tokens": 6}, {"greedy": False}])
def test_settings_of_a_row_hold_where_rows_come_and_go(alone: Groups, settings: dict[str, Any]) -> None:
    model = model_of(SMALL, alone)
    prompts = [[20 + n, *range(5, 5 + n % 5)] for n in range(9)]
    plain = Generator(model, alone, GenerationSpec(max_new_tokens=10), vocab_size=384, eos_id=-7)
    ends = EndsAt({answer[3] for answer in plain(padded(prompts), range(9))})
    eos = plain(padded(prompts), range(9))[0][2]
    spec = GenerationSpec(max_new_tokens=10, batch_size=3, **settings)
    generator = Generator(model, alone, spec, vocab_size=384, eos_id=eos, ends=ends)
    made: dict[int, list[int]] = {}
    for some in generator.stream(asked(prompts), 0):
        made |= some
    alone_each = [generator(padded([prompt]), [n])[0] for n, prompt in enumerate(prompts)]
    assert [made[n] for n in range(9)] == alone_each


def test_no_rows_need_no_answers(alone: Groups) -> None:
    generator = Generator(model_of(SMALL, alone), alone, GenerationSpec(), vocab_size=384, eos_id=-7)
    assert list(generator.stream([], 0)) == []


def test_what_a_row_draws_does_not_depend_on_its_batch(alone: Groups) -> None:
    model = model_of(SMALL, alone)
    spec = GenerationSpec(max_new_tokens=6, greedy=False, temperature=1.5)
    generator = Generator(model, alone, spec, vocab_size=384, eos_id=-7)
    together = generator(padded(PROMPTS), [4, 9, 2])
    assert [
        generator(padded([prompt]), [index])[0] for prompt, index in zip(PROMPTS, (4, 9, 2), strict=True)
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
