"""Micro-batches as a model takes them: tensors of b rows of s tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from hpclm.data.ranks.transfer import moved

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every forward pass needs.

    Attributes:
        tokens, position_ids: int64 [b, s].
        virtual_index: int64 [b, s], the number of the virtual token at a slot, -1 elsewhere; None without soft prompts.
        task: int64 [b] or [b, s], the rows' place in the table of soft prompts; None without them.
    """

    tokens: Tensor
    position_ids: Tensor
    virtual_index: Tensor | None = None
    task: Tensor | None = None

    def to(self: AnyBatch, device: torch.device) -> AnyBatch:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **moved({name: one for name, one in values.items() if isinstance(one, Tensor)}, device))


@dataclass(frozen=True, kw_only=True)
class TrainingBatch(Batch):
    """A batch with its labels: rows side by side, or one packed sequence of them (see `data.ranks.packing`).

    Attributes:
        labels: int64 [b, s]; loss_mask: fp32 [b, s].
        loss_positions: int64 [n], the positions in [b · s] where losses are computed; None: at all of them.
        real_tokens: how many tokens the packed rows have, shared prefixes counted in each; None: all of `tokens`.
        layout: where the packed rows are, see `Layout`.
    """

    labels: Tensor
    loss_mask: Tensor
    loss_positions: Tensor | None = None
    real_tokens: int | None = None
    layout: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationBatch(Batch):
    """Prompts to continue, padded behind.

    Attributes:
        lengths: real tokens of each row.
    """

    virtual_index: Tensor
    task: Tensor
    lengths: tuple[int, ...]
