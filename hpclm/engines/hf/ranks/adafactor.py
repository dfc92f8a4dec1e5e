"""Adafactor: Shazeer and Stern 2018 (arXiv:1804.04235), algorithm 5, with the defaults of torch.optim.Adafactor.

A class of our own: torch's fails where a tensor is divided over ranks, since its means and norms are of the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hpclm.engines.hf.ranks.whole_tensors import like, local, norm_of, whole

BETA2_DECAY, _CLIP = -0.8, 1.0
_LEAST_NORM, LEAST_VARIANCE = 1e-3, torch.finfo(torch.float32).eps


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
        of_weight = norm_of(weight)
        local(weight).mul_(1 - rate * decay)
        update = scaled(_variance(state, gradient, step**BETA2_DECAY), local(gradient))
        local(weight).add_(update, alpha=-factor(of_weight, norm_of(like(update, weight)), weight.numel(), rate, step))


def scaled(variance: Tensor, gradient: Tensor) -> Tensor:
    """The update of a part of a weight, in the place of its second moments."""
    return variance.clamp_(min=LEAST_VARIANCE * LEAST_VARIANCE).rsqrt_().mul_(gradient)


def factor(of_weight: float, of_update: float, size: int, rate: float, step: float) -> float:
    """Of an update that goes into its weight: by the root mean squares of both, whole, of so many elements."""
    root = math.sqrt(size)
    return max(_LEAST_NORM, of_weight / root) * min(rate, 1 / math.sqrt(step)) / max(1.0, of_update / (root * _CLIP))


def _variance(state: dict[str, Any], gradient: Tensor, share: float) -> Tensor:
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
    return (local(rows) @ local(columns)).div_(mean.clamp_(min=LEAST_VARIANCE))


def _moved(state: dict[str, Any], name: str, value: Tensor, share: float) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(value)
    kept: Tensor = state[name]
    if isinstance(kept, DTensor) and isinstance(value, DTensor):
        kept.to_local().lerp_(value.to_local(), share)
        return kept
    return kept.lerp_(value, share)
