"""Adafactor: Shazeer and Stern 2018 (arXiv:1804.04235), algorithm 5, with the defaults of torch.optim.Adafactor.

A class of our own: torch's fails where a tensor is divided over ranks, since its means and norms are of the whole one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hpclm.engines.hf.ranks.whole_tensors import like, local, norm_of, whole

_BETA2_DECAY, _CLIP = -0.8, 1.0
_LEAST_NORM = 1e-3


class Adafactor(torch.optim.Optimizer):
    """A matrix's second moments are kept as the means of its rows and of its columns."""

    def __init__(self, groups: Any, lr: float, weight_decay: float = 0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        step = float(state["step"])
        least = torch.finfo(weight.dtype).eps
        size = weight.numel() ** 0.5
        alpha = max(_LEAST_NORM, norm_of(weight) / size) * min(rate, step**-0.5)
        local(weight).mul_(1 - rate * decay)
        estimate = _variance(state, gradient, step**_BETA2_DECAY, least)
        update = estimate.clamp_(min=least * least).rsqrt_().mul_(local(gradient))
        clip = max(1.0, norm_of(like(update, weight)) / (size * _CLIP))
        local(weight).add_(update, alpha=-alpha / clip)


def _variance(state: dict[str, Any], gradient: Tensor, share: float, least: float) -> Tensor:
    """Second moments of this rank's part, after `share` of the gradient's has gone in."""
    square = gradient * gradient
    if gradient.dim() == 1:
        moved = _moved(state, "variance", square, share)
        return local(moved).clone()
    rows = _moved(state, "row_var", square.sum(-1, keepdim=True) / gradient.size(-1), share)
    of_columns = square.sum(-2, keepdim=True) / gradient.size(-2)
    divided = gradient.dim() == 2  # by its rows; of more dimensions each matrix is on one rank
    columns = _moved(state, "col_var", whole(of_columns) if divided else of_columns, share)
    mean = rows.sum(-2, keepdim=True) / gradient.size(-2)
    mean = whole(mean) if divided else local(mean)
    return (local(rows) @ local(columns)).div_(mean.clamp_(min=least))


def _moved(state: dict[str, Any], name: str, value: Tensor, share: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    kept: Tensor = state[name]
    if isinstance(kept, DTensor) and isinstance(value, DTensor):
        kept.to_local().lerp_(value.to_local(), share)
        return kept
    return kept.lerp_(value, share)
