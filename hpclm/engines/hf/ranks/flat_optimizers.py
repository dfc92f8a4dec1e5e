"""LAMB and Adafactor where ZeRO has flattened what they update: norms and means are of whole weights all the same.

Which part of a flat tensor is of which weight, `place` is told once DeepSpeed has divided them; before, its updates to
find out about memory change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hpclm.engines.hf.ranks import adafactor, lamb
from hpclm.engines.hf.ranks.flat_tensors import Fragment, Fragments, norms, sum_over_ranks


class FlatOptimizer(torch.optim.Optimizer):
    """What both share. `device`: of the ranks' messages."""

    def __init__(self, groups: Any, device: torch.device, defaults: dict[str, Any]) -> None:
        self.device = device
        self.fragments: dict[int, list[Fragment]] = {}
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, **defaults})

    def place(self, found: Fragments) -> None:
        self.fragments = {id(flat): fragments for flat, fragments in found}

    def whole_states(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Tensors of a weight's state that every rank has whole."""
        return {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for flat in group["params"]:
                if flat.grad is not None and id(flat) in self.fragments:
                    self._update(flat, flat.grad, self.fragments[id(flat)], group)

    def _update(self, flat: Tensor, gradient: Tensor, fragments: list[Fragment], group: dict[str, Any]) -> None:
        raise NotImplementedError


class FlatLamb(FlatOptimizer):
    """`lamb.Lamb`."""

    def __init__(self, groups: Any, device: torch.device, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, device, {"betas": betas, "eps": eps})

    def _update(self, flat: Tensor, gradient: Tensor, fragments: list[Fragment], group: dict[str, Any]) -> None:
        update = lamb.update(self.state[flat], flat, gradient, group)
        found = norms([flat, update], fragments, self.device)
        for one, (of_weight, of_update) in zip(fragments, found, strict=True):
            one.of(flat).add_(one.of(update), alpha=-group["lr"] * lamb.ratio(of_weight, of_update))


class FlatAdafactor(FlatOptimizer):
    """`adafactor.Adafactor`; the means, which are small, are on every rank."""

    def __init__(self, groups: Any, device: torch.device) -> None:
        self.means: dict[nn.Parameter, dict[str, Tensor]] = {}
        super().__init__(groups, device, {})

    def place(self, found: Fragments) -> None:
        super().place(found)
        for flat, fragments in found:
            self.means.update({one.weight: _no_means(one.shape, flat) for one in fragments})

    def whole_states(self, weight: nn.Parameter) -> dict[str, Tensor]:
        return self.means[weight]

    def _update(self, flat: Tensor, gradient: Tensor, fragments: list[Fragment], group: dict[str, Any]) -> None:
        state = self.state[flat]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        step, rate = float(state["step"]), group["lr"]
        self._move(gradient, fragments, step)
        update = torch.zeros_like(flat)
        for one in fragments:
            if one.count:
                estimate = _variance(self.means[one.weight], one)
                one.of(update).copy_(adafactor.scaled(estimate, one.of(gradient)))
        found = norms([flat, update], fragments, self.device)
        flat.mul_(1 - rate * group["weight_decay"])
        for one, (of_weight, of_update) in zip(fragments, found, strict=True):
            factor = adafactor.factor(of_weight, of_update, math.prod(one.shape), rate, step)
            one.of(flat).add_(one.of(update), alpha=-factor)

    def _move(self, gradient: Tensor, fragments: list[Fragment], step: float) -> None:
        """The means of all weights, after the gradient's have gone in."""
        mine = [_no_means(one.shape, gradient) for one in fragments]
        for one, of_weight in zip(fragments, mine, strict=True):
            if one.count:
                _add_sums(of_weight, one, one.of(gradient).square())
        sums = [value for of_weight in mine for value in of_weight.values()]
        kept = [value for one in fragments for value in self.means[one.weight].values()]
        parts = [_summands(one, name) for one, of_weight in zip(fragments, mine, strict=True) for name in of_weight]
        everything = sum_over_ranks(torch.cat([value.reshape(-1) for value in sums]), self.device)
        for mean, whole, count in zip(kept, torch.split(everything, [one.numel() for one in sums]), parts, strict=True):
            mean.lerp_(whole.view_as(mean) / count, step**adafactor.BETA2_DECAY)


def _no_means(shape: tuple[int, ...], like: Tensor) -> dict[str, Tensor]:
    """As `adafactor` shapes them: of a matrix [..., r, c] rows [..., r, 1] and columns [..., 1, c]."""
    if len(shape) < 2:
        return {"variance": like.new_zeros(shape)}
    return {"row_var": like.new_zeros((*shape[:-1], 1)), "col_var": like.new_zeros((*shape[:-2], 1, shape[-1]))}


def _summands(one: Fragment, name: str) -> int:
    """Elements that a mean is of."""
    return {"row_var": one.shape[-1], "col_var": one.shape[-2] if len(one.shape) > 1 else 1, "variance": 1}[name]


def _rows(one: Fragment) -> tuple[int, Tensor, int]:
    """The first row that a part reaches into, the matrix of each of its rows (of weights of three dimensions or more),
    and the place of the part in them."""
    first, before = divmod(one.offset, one.shape[-1])
    count = -(-(before + one.count) // one.shape[-1])
    return first, torch.arange(first, first + count) // one.shape[-2], before


def _add_sums(sums: dict[str, Tensor], one: Fragment, square: Tensor) -> None:
    """Of the part's rows and columns. `square`: [count]."""
    if len(one.shape) < 2:
        sums["variance"].view(-1)[one.offset : one.offset + one.count] = square
        return
    width = one.shape[-1]
    first, matrices, before = _rows(one)
    rows = square.new_zeros(len(matrices) * width)
    rows[before : before + one.count] = square
    rows = rows.view(-1, width)
    sums["row_var"].view(-1)[first : first + len(matrices)] = rows.sum(-1)
    sums["col_var"].view(-1, width).index_add_(0, matrices.to(square.device), rows)


def _variance(means: dict[str, Tensor], one: Fragment) -> Tensor:
    """Second moments of a part, [count]."""
    if len(one.shape) < 2:
        return means["variance"].view(-1)[one.offset : one.offset + one.count].clone()
    width = one.shape[-1]
    first, matrices, before = _rows(one)
    matrices = matrices.to(means["row_var"].device)
    rows = means["row_var"].view(-1)[first : first + len(matrices), None]
    mean = (means["row_var"].sum(-2) / one.shape[-2]).view(-1).clamp(min=adafactor.LEAST_VARIANCE)[matrices, None]
    found = rows * means["col_var"].view(-1, width)[matrices] / mean
    return found.view(-1)[before : before + one.count]
