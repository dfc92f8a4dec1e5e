"""How many samples each step takes, where the global batch grows over the first of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpclm.core.spec import RampupSpec


@dataclass(frozen=True)
class _Level:
    """Steps of one size. `step`, `consumed`: at its beginning."""

    step: int
    consumed: int
    size: int


class BatchSchedule:
    """The global batch at each step: `size`, or growing up to it as megatron-core's
    RampupBatchsizeNumMicroBatchesCalculator (num_microbatches_calculator.py) has it."""

    def __init__(self, size: int, rampup: RampupSpec | None = None) -> None:
        self.size = size
        self.levels = [_Level(0, 0, size)] if rampup is None else _levels(size, rampup)
        self._steps = [level.step for level in self.levels]

    def consumed(self, step: int) -> int:
        """Samples of all steps before this one."""
        level = self._level(step)
        return level.consumed + (step - level.step) * level.size

    def at(self, step: int) -> int:
        """Samples of this step."""
        return self._level(step).size

    def steps(self, samples: int) -> int:
        """How many steps so many samples are, more than those in which the batch grows (Megatron-LM's
        update_train_iters, training.py); what does not fill the last one is left out."""
        last = self.levels[-1]
        return last.step + (samples - last.consumed) // last.size

    def _level(self, step: int) -> _Level:
        return self.levels[bisect_right(self._steps, step) - 1]


def _levels(size: int, rampup: RampupSpec) -> list[_Level]:
    each = rampup.samples / ((size - rampup.start) // rampup.increment)
    found: list[_Level] = []
    step = consumed = 0
    while consumed <= rampup.samples:
        number = int(consumed / each)
        now = rampup.start + number * rampup.increment
        count = max(1, math.ceil(((number + 1) * each - consumed) / now))
        # the quotient as floating point rounds it decides, there as here
        while count > 1 and int((consumed + (count - 1) * now) / each) > number:
            count -= 1
        while consumed + count * now <= rampup.samples and int((consumed + count * now) / each) == number:
            count += 1
        found.append(_Level(step, consumed, now))
        step, consumed = step + count, consumed + count * now
    found.append(_Level(step, consumed, size))
    return found
