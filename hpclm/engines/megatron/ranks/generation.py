"""Batched generation with a key/value cache over tensor and pipeline parallel ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.ranks.seeds import named_generator
from hpclm.core.spec import GenerationSpec
from hpclm.data.ranks.batches import Batch, GenerationBatch
from hpclm.engines.megatron.ranks.end_strings import EndStrings
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.language_model import LanguageModel, embed


class Generator:
    """Continues left-padded prompts. Every rank of a model replica calls it with the same batch.

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
        context = StaticInferenceContext(rows, length + self.spec.max_new_tokens)
        generators = [named_generator(self.spec.seed, f"row {index}") for index in indices]
        real = batch.attention
        positions = batch.position_ids[:, -1:]
        # prompts of equal length need no mask: causal attention is enough
        padded = not bool(real.all())
        logits = self._forward(batch, prefill_mask(real) if padded else None, context)
        seen = self._seen(batch) if logits is not None and self.spec.repetition_penalty != 1.0 else None
        answers: list[list[int]] = [[] for _ in range(rows)]
        finished = [False] * rows
        for count in range(1, self.spec.max_new_tokens + 1):
            if logits is not None:
                logits = self._shaped(logits, seen, may_end=count > self.spec.min_new_tokens)
            chosen = self._choose(logits, rows, generators)
            with heartbeat.waiting():
                tokens = chosen.tolist()
            self._take(tokens, answers, finished)
            if all(finished) or count == self.spec.max_new_tokens:
                break
            if seen is not None:
                seen.scatter_(1, chosen.unsqueeze(1), True)
            if padded:
                real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
            positions = positions + 1
            step = Batch(tokens=chosen.unsqueeze(1), position_ids=positions)
            logits = self._forward(step, real[:, None, None, :] if padded else None, context)
        return answers

    def _take(self, tokens: list[int], answers: list[list[int]], finished: list[bool]) -> None:
        """Add a token to each unfinished answer. A finished row is still computed, without effect."""
        for row, token in enumerate(tokens):
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
        real = batch.attention & (batch.virtual_index < 0)
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

    def _forward(self, batch: Batch, mask: Tensor | None, context: StaticInferenceContext) -> Tensor | None:
        """One pass over all stages. Logits fp32 [b, vocabulary] of the last position on the last stage, else None."""
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
        output = gpt(
            batch.tokens,
            batch.position_ids,
            mask,
            decoder_input=decoder_input,
            inference_context=context,
            runtime_gather_output=True,
        )
        context.sequence_len_offset += length
        if not groups.is_last_stage:
            dist.send(output.contiguous(), dst=parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        logits: Tensor = output[:, -1, : self.vocab_size].float()
        return logits

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


def prefill_mask(real: Tensor) -> Tensor:
    """Causal attention over real tokens: bool [b, 1, s, s], True where a position may attend.

    A padding position attends to itself, because a softmax over nothing is NaN.
    """
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    own = torch.eye(length, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | own)[:, None]


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
