"""Batched generation with a key/value cache over tensor and pipeline parallel ranks."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.ranks.seeds import named_generator
from hpclm.core.spec import GenerationSpec
from hpclm.data.ranks.batches import Batch, GenerationBatch
from hpclm.data.ranks.packing import collate_prompts
from hpclm.data.templates import Example
from hpclm.engines.megatron.ranks import decode_graph
from hpclm.engines.megatron.ranks.end_strings import EndStrings
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.key_value_cache import KeyValueCache
from hpclm.engines.megatron.ranks.language_model import LanguageModel, embed, rotated_by_position, without_output_layer

# Rows that have ended are dropped once so many are left, and others take their places once so many are free: both copy
# the keys and values of those that go on.
_WORTH_DROPPING = 0.75
_WORTH_FILLING = 0.25
# Tokens a row between two looks at what has ended.
_TICK = 16


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
        self.graph = decode_graph.DecodeGraph() if decode_graph.usable(groups, model.config) else None

    def __call__(self, batch: GenerationBatch, indices: Sequence[int]) -> list[list[int]]:
        """The new tokens of each row, without the end token.

        Args:
            indices: each row's place in the test set. Sampling draws from a generator named after it, so the result of
                a row does not depend on its batch or on the split.
        """
        made: dict[int, list[int]] = {}
        capacity = batch.tokens.shape[1] + self.spec.max_new_tokens
        with self._generating():
            rows: _Rows | None = self._begin(batch, indices, capacity, made)
            while rows is not None:
                rows = self._step(rows, made)
        return [made[index] for index in indices]

    def stream(self, examples: Sequence[Example], pad_id: int) -> Iterator[dict[int, list[int]]]:
        """Answers by the rows' places in the test set, as they end; after every few tokens, so sometimes none.

        `GenerationSpec.batch_size` rows are computed at a time, and others take the place of those that have ended.
        """
        waiting, rows, size = deque(examples), None, self.spec.batch_size
        capacity = max((len(one.tokens) for one in examples), default=0) + self.spec.max_new_tokens
        while waiting or rows is not None:
            made: dict[int, list[int]] = {}
            with self._generating():
                for _ in range(_TICK):
                    free = size if rows is None else size - rows.running
                    if waiting and (rows is None or free >= _WORTH_FILLING * size):
                        new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                        batch = collate_prompts(new, pad_id).to(self.groups.device)
                        rows = _joined(rows, self._begin(batch, [one.index for one in new], capacity, made))
                    elif rows is not None:
                        rows = self._step(rows, made)
                    else:
                        break
            yield made

    @contextlib.contextmanager
    def _generating(self) -> Iterator[None]:
        self.model.eval()
        with torch.inference_mode(not self.trains_on), torch.no_grad():
            yield

    def _begin(
        self, batch: GenerationBatch, names: Sequence[int], capacity: int, made: dict[int, list[int]]
    ) -> _Rows | None:
        """Read prompts and choose the first token of each answer; None if all have ended with it."""
        if self.table is None and self.groups.is_first_stage and self.model.prompts is not None:
            self.table = self.model.prompts()
        cache = KeyValueCache(batch.lengths, capacity, self.groups.device)
        logits = self._forward(batch, cache, None)
        seen = self._seen(batch) if logits is not None and self.spec.repetition_penalty != 1.0 else None
        rows = _Rows(
            names=list(names),
            answers=[[] for _ in names],
            ended=[False] * len(names),
            tokens=batch.tokens[:, 0],
            cache=cache,
            generators=[named_generator(self.spec.seed, f"row {name}") for name in names],
            seen=seen,
        )
        return self._take(rows, logits, made)

    def _step(self, rows: _Rows, made: dict[int, list[int]]) -> _Rows | None:
        """One more token for each row; None when all have ended."""
        heartbeat.beat()
        rows.cache.grow()
        return self._take(rows, self._decode(rows.tokens, rows.cache), made)

    def _decode(self, tokens: Tensor, cache: KeyValueCache) -> Tensor | None:
        if self.graph is None:
            return self._next_logits(tokens, cache)
        return self.graph(self._next_logits, tokens, cache)

    def _next_logits(self, tokens: Tensor, cache: KeyValueCache) -> Tensor | None:
        """Of one more token of each row, see `_forward`."""
        batch = Batch(tokens=tokens.unsqueeze(1), position_ids=cache.places.unsqueeze(1))
        return self._forward(batch, cache, cache.mask())

    def _take(self, rows: _Rows, logits: Tensor | None, made: dict[int, list[int]]) -> _Rows | None:
        """Choose each row's next token. Answers that it ends are `made`; a row that has ended may still be computed,
        without effect."""
        if logits is not None:
            logits = self._shaped(logits, rows)
        rows.tokens = self._choose(logits, len(rows.names), rows.generators)
        with heartbeat.waiting():
            tokens = rows.tokens.tolist()
        for place, token in enumerate(tokens):
            if rows.ended[place]:
                continue
            answer = rows.answers[place]
            if token not in self.end_ids:
                answer.append(token)
            if token in self.end_ids or self._is_whole(rows.names[place], answer):
                rows.ended[place] = True
                made[rows.names[place]] = answer
        if rows.seen is not None:
            rows.seen.scatter_(1, rows.tokens.unsqueeze(1), True)
        if not rows.running:
            return None
        return _without_ended(rows) if rows.running <= _WORTH_DROPPING * len(rows.names) else rows

    def _is_whole(self, name: int, answer: list[int]) -> bool:
        """Whether an answer ends with its newest token, which is no end token."""
        return len(answer) == self.spec.max_new_tokens or (self.ends is not None and self.ends.reached(answer))

    def _seen(self, batch: GenerationBatch) -> Tensor:
        """Which tokens of the vocabulary each row's prompt contains, bool [b,
        vocabulary]; virtual tokens do not count."""
        tokens = batch.tokens.clamp(max=self.vocab_size - 1)
        counts = torch.zeros((len(tokens), self.vocab_size), dtype=torch.int32, device=tokens.device)
        lengths = torch.tensor(batch.lengths, device=tokens.device)
        real = (batch.position_ids < lengths.unsqueeze(1)) & (batch.virtual_index < 0)
        return counts.scatter_add_(1, tokens, real.int()) > 0

    def _shaped(self, logits: Tensor, rows: _Rows) -> Tensor:
        """Logits after the repetition penalty (Keskar et al. 2019, arXiv:1909.05858: what was seen is divided by it,
        or multiplied below 0), without the end tokens while an answer is shorter than the minimum."""
        if rows.seen is not None:
            penalty = self.spec.repetition_penalty
            logits = torch.where(rows.seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        short = [place for place, answer in enumerate(rows.answers) if len(answer) < self.spec.min_new_tokens]
        for end in self.end_ids if short else ():
            logits[short, end] = -torch.inf
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


@dataclass
class _Rows:
    """Rows that are computed together.

    Attributes:
        names: their places in the test set.
        tokens: int64 [b], each row's newest token, which the model has not read yet.
        seen: bool [b, vocabulary], what the repetition penalty counts; None: nothing.
    """

    names: list[int]
    answers: list[list[int]]
    ended: list[bool]
    tokens: Tensor
    cache: KeyValueCache
    generators: list[torch.Generator]
    seen: Tensor | None

    @property
    def running(self) -> int:
        return self.ended.count(False)


def _without_ended(rows: _Rows) -> _Rows:
    left = [place for place, ended in enumerate(rows.ended) if not ended]
    kept = torch.tensor(left, device=rows.tokens.device)
    rows.cache.keep(left, kept)
    return _Rows(
        names=[rows.names[place] for place in left],
        answers=[rows.answers[place] for place in left],
        ended=[False] * len(left),
        tokens=rows.tokens.index_select(0, kept),
        cache=rows.cache,
        generators=[rows.generators[place] for place in left],
        seen=None if rows.seen is None else rows.seen.index_select(0, kept),
    )


def _joined(rows: _Rows | None, new: _Rows | None) -> _Rows | None:
    """Both, without those that have ended."""
    if rows is None or new is None:
        return rows or new
    rows, new = (_without_ended(one) if any(one.ended) else one for one in (rows, new))
    rows.cache.join(new.cache)
    return _Rows(
        names=rows.names + new.names,
        answers=rows.answers + new.answers,
        ended=rows.ended + new.ended,
        tokens=torch.cat([rows.tokens, new.tokens]),
        cache=rows.cache,
        generators=rows.generators + new.generators,
        seen=None if rows.seen is None or new.seen is None else torch.cat([rows.seen, new.seen]),
    )


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
