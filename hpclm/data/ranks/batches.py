"""Micro-batches as a model takes them: tensors of b rows of s tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

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
        return replace(self, **{name: _moved(value, device) for name, value in values.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class TrainingBatch(Batch):
    """A batch with its labels: rows side by side, or one packed sequence of them (see `data.ranks.packing`).

    Attributes:
        labels: int64 [b, s]; loss_mask: fp32 [b, s].
        loss_positions: int64 [n], the positions in [b · s] where losses are computed; None: at all of them.
        lengths: int64 [rows], the tokens of each packed row.
        layout: where the packed rows are, see `Layout`.
    """

    labels: Tensor
    loss_mask: Tensor
    loss_positions: Tensor | None = None
    lengths: Tensor | None = None
    layout: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationBatch(Batch):
    """Left-padded prompts to continue.

    Attributes:
        attention: bool [b, s], True at real tokens.
    """

    virtual_index: Tensor
    task: Tensor
    attention: Tensor


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a view of many equal entries (a layout) stays a view, which `to` would expand."""
    is_view = tensor.dim() > 1 and tensor.stride(0) == 0
    return tensor[0].to(device).expand(tensor.shape) if is_view else tensor.to(device)
