"""Attention of transformers' models over rows that lie one behind the other in a single sequence, without padding and
without a mask: each row attends to itself alone.

Registered with transformers under the name `documents`. The rows' bounds come with the forward pass's keyword
`documents`, which models hand on to their attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpclm.data.ranks.packed_layout import Segments
from hpclm.training.ranks import flash_attention

NAME = "documents"
# What transformers gives an attention that changes nothing here.
_KNOWN = frozenset({"position_ids", "use_cache", "cache", "cache_position", "past_key_values", "output_attentions",
                    "is_causal", "logits_to_keep", "return_dict", "position_embeddings", "deterministic",
                    "output_hidden_states", "output_router_logits"})  # fmt: skip


class UnsupportedAttentionError(ValueError):
    """A model's attention is more than `attend` computes. `instead`: transformers' own that computes it."""

    def __init__(self, message: str, instead: str) -> None:
        super().__init__(message)
        self.instead = instead


@dataclass(frozen=True)
class Documents:
    """Bounds of the rows in a packed sequence.

    Attributes:
        starts: of each row, and the end of the last one.
        segments: the same for flash kernels.
    """

    starts: tuple[int, ...]
    segments: Segments | None = None

    def to(self, device: torch.device) -> Documents:
        if device.type != "cuda":
            return self
        bounds = torch.tensor(self.starts, dtype=torch.int32, device=device)
        longest = max(end - start for start, end in zip(self.starts, self.starts[1:], strict=False))
        return Documents(self.starts, Segments(bounds, bounds, longest, longest, None))


def register() -> None:
    """Make it known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Rows are kept apart by their bounds."""


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Query [1, n, s, d], key and value [1, groups, s, d]; the result is [1, s, n, d].

    Raises UnsupportedAttentionError.
    """
    strange = [name for name, given in kwargs.items() if given is not None and name not in _KNOWN]
    if strange or attention_mask is not None or documents is None:
        what = ", ".join(strange) or "a mask"
        # what is added to the scores or to their softmax is left out by transformers' sdpa
        raise UnsupportedAttentionError(f"{type(module).__name__} has {what}", "eager" if strange else "sdpa")
    length = query.size(2)
    if documents.segments is not None and not dropout and not sliding_window and flash_attention.usable(query):
        own_query, own_key, own_value = (one[0].transpose(0, 1) for one in (query, key, value))
        return flash_attention.attend(own_query, own_key, own_value, documents.segments, scaling)[None], None
    made = []
    for start, end in zip(documents.starts, documents.starts[1:], strict=False):
        own = (slice(None), slice(None), slice(start, end))
        window = None
        if sliding_window and end - start > sliding_window:
            place = torch.arange(end - start, device=query.device)
            behind = place[:, None] - place
            window = (behind >= 0) & (behind < sliding_window)
        some, keys = query[own], key[own]
        keys, values = flash_attention.each_head(some, keys, value[own], window)
        made.append(
            torch.nn.functional.scaled_dot_product_attention(
                some, keys, values, attn_mask=window, dropout_p=dropout, scale=scaling,
                is_causal=window is None, enable_gqa=some.size(1) != keys.size(1),
            )
        )  # fmt: skip
    joined = made[0] if len(made) == 1 else torch.cat(made, dim=2)
    assert joined.size(2) == length, "the documents' bounds do not cover the sequence"
    return joined.transpose(1, 2), None
