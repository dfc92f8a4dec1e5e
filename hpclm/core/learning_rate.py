"""The learning rate at each update."""

from __future__ import annotations

import math
from collections.abc import Callable

from hpclm.core.spec import OptimSpec


def learning_rate(optim: OptimSpec, step: int, total_steps: int, increment: int = 1) -> float:
    """The rate of update `step` (from 0): linear warm-up, the schedule over what is left before the constant tail, then
    `min_lr`. Sources: nemo/core/optim/lr_scheduler.py; megatron/core/optimizer_param_scheduler.py, whose curves
    `from_zero`, `inverse-square-root` and `wsd` give.

    The warm-up is WarmupPolicy's (step+1)/(warmup+1), whose first step is not lost at a rate of 0; with a cosine and a
    constant tail it is CosineAnnealing's step/warmup, which is Megatron-LM's.

    Args:
        increment: from this update to the next, where steps are samples.
    """
    warmup, constant = optim.warmup(total_steps), optim.constant(total_steps)
    if step < warmup:
        from_zero = optim.from_zero or optim.schedule in _OF_MEGATRON or (constant > 0 and optim.schedule == "cosine")
        return optim.lr * (step / warmup if from_zero else (step + increment) / (warmup + increment))
    if optim.schedule == "constant":
        return optim.lr
    end = total_steps - constant
    if optim.schedule == "inverse-square-root":
        return optim.min_lr if step > end else max(optim.min_lr, optim.lr * math.sqrt(max(1, warmup) / max(1, step)))
    first = end - optim.anneal_steps if optim.schedule == "wsd" else warmup
    progress = min(1.0, max(0, step - first) / max(1, end - first))
    curve = _CURVES[optim.anneal if optim.schedule == "wsd" else optim.schedule]
    return optim.min_lr + (optim.lr - optim.min_lr) * curve(progress)


_OF_MEGATRON = ("inverse-square-root", "wsd")
# From 1 to 0 as the progress goes from 0 to 1
_CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "exponential": lambda progress: 2.0 * math.pow(0.5, progress) - 1.0,
    "minus_sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
