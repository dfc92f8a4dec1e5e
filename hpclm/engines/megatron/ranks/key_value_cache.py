"""Keys and values of rows of different lengths, for generation one token at a time.

megatron-core's static cache has one length for all rows, so prompts are padded in front, under a mask that rules flash
kernels out; and it stores keys before their rotation, so that each token rotates all of them again. Here a row's prompt
begins at 0 and its tokens follow it, keys are stored rotated, and rows come and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from hpclm.engines.megatron.ranks.rotary import rotate

_SPAN_STEP = 64


class KeyValueCache(StaticInferenceContext):  # type: ignore[misc] # megatron-core has no types here
    """What `CachedAttention` reads and adds to; as megatron-core's context it only says that this is generation.

    Args:
        lengths: of the prompts.
        capacity: tokens of a row, prompt and answer.

    Attributes:
        places: int64 [b], the position of each row's newest token; its memory changes with `version` alone.
        version: how often rows came or went.
        span: how many keys are attended to; None: as many as the longest row has.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, device: torch.device) -> None:
        super().__init__(len(lengths), capacity)
        self.materialize_only_last_token_logits = False
        self.lengths = list(lengths)
        self.places = torch.tensor(self.lengths, device=device) - 1
        self.rows = torch.arange(len(lengths), device=device)
        self.version = 0
        self.span: int | None = None
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def grow(self) -> None:
        """Make room for one more token in each row; the next forward pass fills it."""
        self.lengths = [length + 1 for length in self.lengths]
        self.places += 1

    def round_span(self) -> None:
        """Attend to a rounded number of keys, the same one over many tokens."""
        self.span = min(self.max_sequence_length, -(-max(self.lengths) // _SPAN_STEP) * _SPAN_STEP)

    def keep(self, rows: list[int], index: Tensor) -> None:
        """Drop all but these rows; `index`: the same as int64 [b']."""
        self.version += 1
        self.lengths = [self.lengths[row] for row in rows]
        self.places = self.places.index_select(0, index)
        self.rows = self.rows[: len(rows)]
        for layer, pair in self._layers.items():
            key, value = (states.index_select(1, index) for states in pair)
            self._layers[layer] = key, value

    def join(self, other: KeyValueCache) -> None:
        """Append the rows of a cache of the same capacity."""
        self.version += 1
        self.lengths += other.lengths
        self.places = torch.cat([self.places, other.places])
        self.rows = torch.arange(len(self.lengths), device=self.places.device)
        for layer, pair in self._layers.items():
            key, value = (torch.cat(both, dim=1) for both in zip(pair, other._layers.pop(layer), strict=True))
            self._layers[layer] = key, value

    def mask(self) -> Tensor | None:
        """Which keys each row's newest token sees, bool [b, 1, 1, k]; None where all rows are as long as these are."""
        longest = self.span or max(self.lengths)
        if min(self.lengths) == longest:
            return None
        return (torch.arange(longest, device=self.places.device) <= self.places.unsqueeze(1))[:, None, None, :]

    def add(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values [s, b, groups, d]: of the prompts, or of one more token of each row. Returns
        those that there are to attend to."""
        stored = self._layers.get(layer)
        if stored is None:
            self._layers[layer] = self._allocate(key), self._allocate(value)
            return key, value
        for kept, new in zip(stored, (key, value), strict=True):
            kept[self.places, self.rows] = new[0]
        longest = self.span or max(self.lengths)
        return stored[0][:longest], stored[1][:longest]

    def _allocate(self, states: Tensor) -> Tensor:
        length, *shape = states.shape
        kept = states.new_empty((self.max_sequence_length, *shape))
        kept[:length] = states
        # what a shorter row has not filled is masked, but no number may come of it
        kept[length:] = 0
        return kept


class CachedAttention(SelfAttention):  # type: ignore[misc]
    """megatron-core's self-attention, with this cache in generation."""

    def _adjust_key_value_for_inference(
        self,
        inference_context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_pos_emb: tuple[Tensor, Tensor] | None,
        *arguments: Any,
        **options: Any,
    ) -> tuple[Any, ...]:
        if not isinstance(inference_context, KeyValueCache):
            own: tuple[Any, ...] = super()._adjust_key_value_for_inference(
                inference_context, query, key, value, rotary_pos_emb, *arguments, **options
            )
            return own
        if rotary_pos_emb is not None:
            query, key = rotate(query, rotary_pos_emb[0]), rotate(key, rotary_pos_emb[1])
        key, value = inference_context.add(self.layer_number, key, value)
        return query, key, value, None, self.attn_mask_type, None
