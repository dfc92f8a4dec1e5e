"""Answers to rows: generation and text; divided among the model's replicas and gathered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist

from hpclm.core.spec import GenerationSpec
from hpclm.data.templates import Example
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.end_strings import EndStrings
from hpclm.engines.megatron.ranks.generation import Generator
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.language_model import LanguageModel


@dataclass(frozen=True)
class Answer:
    """What was generated for a row. `at_limit`: it reached the token limit before it ended."""

    text: str
    tokens: int
    at_limit: bool


class Answerer:
    """Generates answers to rows with the current model. Every rank creates one and calls it with the same rows.

    Args:
        trains_on: see `Generator`.
    """

    def __init__(
        self,
        groups: Groups,
        model: LanguageModel,
        tokenizer: Tokenizer,
        spec: GenerationSpec,
        *,
        trains_on: bool = False,
    ) -> None:
        self.trains_on = trains_on
        self.groups, self.model, self.tokenizer, self.spec = groups, model, tokenizer, spec
        self.ends = EndStrings(spec.end_strings, tokenizer)

    def stream(self, examples: list[Example]) -> Iterator[list[tuple[Example, Answer]]]:
        """This replica's share of the rows, as their answers end."""
        groups = self.groups
        generator = Generator(
            self.model,
            groups,
            self.spec,
            vocab_size=self.tokenizer.vocab_size,
            eos_id=self.tokenizer.eos_id,
            ends=self.ends,
            trains_on=self.trains_on,
        )
        # rows of similar length together: less padding
        ordered = sorted(examples, key=lambda example: len(example.tokens))[groups.data_rank :: groups.data_size]
        by_index = {example.index: example for example in ordered}
        answers = generator.stream(ordered, self.tokenizer.pad_id)
        while True:
            with without_sequence_parallelism(self.model):
                made = next(answers, None)
            if made is None:
                return
            yield [(by_index[index], self._answer(ids)) for index, ids in made.items()]

    def _answer(self, ids: list[int]) -> Answer:
        text, cut = self.ends.cut(self.tokenizer.decode(ids))
        return Answer(text, len(ids), len(ids) >= self.spec.max_new_tokens and not cut)

    def texts(self, examples: list[Example]) -> list[str]:
        """The answers to all rows, in their order, on every rank."""
        mine = {example.index: answer.text for made in self.stream(examples) for example, answer in made}
        found: list[dict[int, str] | None] = [None] * self.groups.world_size
        dist.all_gather_object(found, mine)
        every: dict[int, str] = {}
        for one in found:
            every.update(one or {})
        return [every[example.index] for example in examples]


@contextlib.contextmanager
def without_sequence_parallelism(model: LanguageModel) -> Iterator[None]:
    """Switch a training model's sequence parallelism off: one token at a time cannot be split over the sequence.

    The weights are the same either way; megatron-core's layers look at the flag in each forward pass.
    """
    config = model.gpt.config
    if not config.sequence_parallel:
        yield
        return
    switched = [one for one in model.gpt.modules() if getattr(one, "sequence_parallel", False) is True]
    config.sequence_parallel = False
    for module in switched:
        module.sequence_parallel = False
    try:
        yield
    finally:
        config.sequence_parallel = True
        for module in switched:
            module.sequence_parallel = True
