"""Dynamic loss scaling for fp16."""

from __future__ import annotations

import torch


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018, arXiv:1710.03740), fixed at 1 otherwise.

    The loss is multiplied before the backward pass so that small gradients survive fp16. An overflow skips the step
    and, from the `HYSTERESIS`th since the scale last grew, halves the scale; `GROWTH_STEPS` steps without one double
    it. Constants are Megatron's (optimizer/grad_scaler.py with its default arguments).
    """

    INITIAL, MINIMUM, GROWTH_STEPS, HYSTERESIS = 2.0**32, 1.0, 1000, 2

    def __init__(self, precision: str, initial: float = INITIAL) -> None:
        self.active = precision == "fp16"
        self.scale = initial if self.active else 1.0
        self.good_steps = 0
        self.overflows_left = self.HYSTERESIS

    def apply(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.scale if self.active else loss

    def update(self, *, overflow: bool) -> None:
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.overflows_left = max(0, self.overflows_left - 1)
            if self.overflows_left == 0:
                self.scale = max(self.MINIMUM, self.scale / 2)
        elif self.good_steps == self.GROWTH_STEPS:
            self.scale, self.good_steps, self.overflows_left = self.scale * 2, 0, self.HYSTERESIS

    def state(self) -> list[float]:
        return [self.scale, self.good_steps, self.overflows_left]

    def restore(self, state: list[float]) -> None:
        self.scale, self.good_steps = float(state[0]), int(state[1])
        # a checkpoint of a version that halved the scale at each overflow has no third number
        self.overflows_left = int(state[2]) if len(state) > 2 else 0
