"""LAMB: You et al. 2020 (arXiv:1904.00962), algorithm 2, with the scaling function φ(z) = z.

A class of our own: the packages that have one leave parts of the bias correction out, and take the norms of a rank's
part where a tensor is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hpclm.engines.hf.ranks.whole_tensors import norm_of


class Lamb(torch.optim.Optimizer):
    """Adam's update with the weight decay in it, scaled for each tensor by ‖weight‖ / ‖update‖."""

    def __init__(
        self,
        groups: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        made = update(self.state[weight], weight, gradient, group)
        weight.add_(made, alpha=-group["lr"] * ratio(norm_of(weight), norm_of(made)))


def update(state: dict[str, Any], weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Before it is scaled, after the gradient has gone into the moments."""
    beta1, beta2 = group["betas"]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
    state["step"] += 1
    step = float(state["step"])
    mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # one tensor of the weight's size beside the state
    made: Tensor = (
        (square / (1 - beta2**step)).sqrt_().add_(group["eps"]).mul_(1 - beta1**step).reciprocal_().mul_(mean)
    )
    made.add_(weight, alpha=group["weight_decay"])
    return made


def ratio(of_weight: float, of_update: float) -> float:
    """The trust ratio, of the norms of a whole weight and its update."""
    return of_weight / of_update if of_weight > 0 and of_update > 0 else 1.0
