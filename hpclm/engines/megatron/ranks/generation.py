"""Batched generation with a key/value cache over tensor and pipeline parallel ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.ranks.seeds import named_generator
from hpclm.core.spec import GenerationSpec
from hpclm.data.ranks.batches import Batch, GenerationBatch
from hpclm.engines.megatron.ranks.end_strings import EndStrings
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.key_value_cache import KeyValueCache
from hpclm.engines.megatron.ranks.language_model import LanguageModel, embed, rotated_by_position, without_output_layer

# Rows that have ended are dropped once so many are left: it copies the keys and values of the others.
_WORTH_DROPPING = 0.75


class Generator:
    """Continues prompts. Every rank of a model replica calls it with the same batch.

    Args:
        vocab_size: real vocabulary; the padding rows of the table are never chosen.
        eos_id: ends an answer.
        ends: other ends of an answer; None: none.
        trains_on: the model is in training. A rotary table that megatron-core creates and caches here is then also used
            with gradients, which torch's inference mode (a few percent faster) does not allow.
    """

    def __init__(
        self,
        model: LanguageModel,
        groups: Groups,
        spec: GenerationSpec,
        *,
        vocab_size: int,
        eos_id: int,
        ends: EndStrings | None = None,
        trains_on: bool = False,
    ) -> None:
        self.model, self.groups, self.spec = model, groups, spec
        self.vocab_size, self.eos_id, self.ends = vocab_size, eos_id, ends
        self.end_ids = [number for number in (eos_id, *(ends.ids if ends else ())) if 0 <= number < vocab_size]
        self.table: Tensor | None = None
        self.trains_on = trains_on

    def __call__(self, batch: GenerationBatch, indices: Iterable[int]) -> list[list[int]]:
        """The new tokens of each row, without the end token.

        Args:
            indices: each row's place in the test set. Sampling draws from a generator named after it, so the result of
                a row does not depend on its batch or on the split.
        """
        self.model.eval()
        with torch.inference_mode(not self.trains_on), torch.no_grad():
            return self._answer(batch, indices)

    def _answer(self, batch: GenerationBatch, indices: Iterable[int]) -> list[list[int]]:
        rows, length = batch.tokens.shape
        if self.table is None and self.groups.is_first_stage and self.model.prompts is not None:
            self.table = self.model.prompts()
        cache = KeyValueCache(batch.lengths, length + self.spec.max_new_tokens, self.groups.device)
        generators = [named_generator(self.spec.seed, f"row {index}") for index in indices]
        logits = self._forward(batch, cache, None)
        seen = self._seen(batch) if logits is not None and self.spec.repetition_penalty != 1.0 else None
        answers: list[list[int]] = [[] for _ in range(rows)]
        finished = [False] * rows
        there = list(range(rows))  # the rows that are still computed
        for count in range(1, self.spec.max_new_tokens + 1):
            if logits is not None:
                logits = self._shaped(logits, seen, may_end=count > self.spec.min_new_tokens)
            chosen = self._choose(logits, len(there), generators)
            with heartbeat.waiting():
                tokens = chosen.tolist()
            self._take(tokens, there, answers, finished)
            if all(finished) or count == self.spec.max_new_tokens:
                break
            if seen is not None:
                seen.scatter_(1, chosen.unsqueeze(1), True)
            left = [place for place, row in enumerate(there) if not finished[row]]
            if len(left) <= _WORTH_DROPPING * len(there):
                kept = torch.tensor(left, device=self.groups.device)
                cache.keep(kept)
                there, generators = [there[place] for place in left], [generators[place] for place in left]
                chosen = chosen.index_select(0, kept)
                seen = seen.index_select(0, kept) if seen is not None else None
            cache.grow()
            step = Batch(tokens=chosen.unsqueeze(1), position_ids=cache.places.unsqueeze(1))
            logits = self._forward(step, cache, cache.mask())
        return answers

    def _take(self, tokens: list[int], there: list[int], answers: list[list[int]], finished: list[bool]) -> None:
        """Add a token to each unfinished answer. A finished row may still be computed, without effect."""
        for row, token in zip(there, tokens, strict=True):
            if finished[row]:
                continue
            if token in self.end_ids:
                finished[row] = True
                continue
            answers[row].append(token)
            finished[row] = self.ends is not None and self.ends.reached(answers[row])

    def _seen(self, batch: GenerationBatch) -> Tensor:
        """Which tokens of the vocabulary each row's prompt contains, bool [b,
        vocabulary]; virtual tokens do not count."""
        tokens = batch.tokens.clamp(max=self.vocab_size - 1)
        counts = torch.zeros((len(tokens), self.vocab_size), dtype=torch.int32, device=tokens.device)
        lengths = torch.tensor(batch.lengths, device=tokens.device)
        real = (batch.position_ids < lengths.unsqueeze(1)) & (batch.virtual_index < 0)
        return counts.scatter_add_(1, tokens, real.int()) > 0

    def _shaped(self, logits: Tensor, seen: Tensor | None, *, may_end: bool) -> Tensor:
        """Logits after the repetition penalty (Keskar et al. 2019, arXiv:1909.05858: what was seen is divided by it,
        or multiplied below 0), without the end tokens while the answer is shorter than the minimum."""
        if seen is not None:
            penalty = self.spec.repetition_penalty
            logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        if not may_end:
            logits[:, self.end_ids] = -torch.inf
        return logits

    def _forward(self, batch: Batch, cache: KeyValueCache, mask: Tensor | None) -> Tensor | None:
        """One pass over all stages. Logits fp32 [b, vocabulary] after each row's last token, None but on the last."""
        gpt, groups = self.model.gpt, self.groups
        rows, length = batch.tokens.shape
        decoder_input = None
        if not groups.is_first_stage:
            states = torch.empty(
                (length, rows, gpt.config.hidden_size), dtype=gpt.config.params_dtype, device=groups.device
            )
            dist.recv(states, src=parallel_state.get_pipeline_model_parallel_prev_rank())
            gpt.set_input_tensor(states)
        elif batch.virtual_index is not None:
            decoder_input = embed(gpt, batch, self.table)
        with rotated_by_position(gpt, batch.position_ids), without_output_layer(gpt):
            states = gpt(
                batch.tokens,
                batch.position_ids,
                mask,
                decoder_input=decoder_input,
                inference_context=cache,
                runtime_gather_output=True,
            )
        if not groups.is_last_stage:
            dist.send(states.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        # of prompts, whose positions count from 0, the last real one; of one token, that one
        last = states[cache.places, cache.rows] if length > 1 else states[0]
        weight = gpt.shared_embedding_or_output_weight() if gpt.share_embeddings_and_output_weights else None
        logits, _ = gpt.output_layer(last.unsqueeze(0), weight=weight, runtime_gather_output=True)
        made: Tensor = logits[0, :, : self.vocab_size].float()
        return made

    def _choose(self, logits: Tensor | None, rows: int, generators: list[torch.Generator]) -> Tensor:
        """The next token of each row, int64 [b], the same on every rank of the replica."""
        chosen = torch.empty(rows, dtype=torch.int64, device=self.groups.device)
        if logits is not None:
            chosen = logits.argmax(dim=-1) if self.spec.greedy else sample(logits, self.spec, generators)
        # Tensor ranks of the last stage hold bitwise equal logits; the other stages receive the result.
        if self.groups.pipeline_size > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            dist.broadcast(chosen, src=last, group=parallel_state.get_pipeline_model_parallel_group())
        return chosen


def sample(logits: Tensor, spec: GenerationSpec, generators: list[torch.Generator]) -> Tensor:
    """Sample one token per row after temperature, top-k and nucleus (Holtzman et al. 2020, arXiv:1904.09751) filtering.

    Args:
        logits: fp32 [b, vocabulary].

    Returns:
        int64 [b]. One uniform number a row, drawn on the CPU, inverts the cumulative distribution where the logits are.
    """
    scores = logits / spec.temperature
    ordered, tokens = scores.sort(dim=-1, descending=True, stable=True)
    if spec.top_k > 0:
        ordered[:, spec.top_k :] = -torch.inf
    probabilities = ordered.softmax(dim=-1)
    if spec.top_p < 1.0:
        # keep the smallest set that reaches top_p: drop what comes after the mass is reached
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= spec.top_p, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    drawn = torch.stack([torch.rand(1, generator=generator) for generator in generators]).to(logits.device)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    place = torch.minimum(torch.searchsorted(probabilities.cumsum(dim=-1), drawn), last)
    return tokens.gather(1, place).squeeze(1)
