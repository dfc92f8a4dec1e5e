"""Which rows a data-parallel rank takes at a step: computed from the step alone, so that
a resumed run continues exactly.

A global batch and its cut into micro-batches do not depend on the number of data-parallel ranks: micro-batch m goes to
rank m % DP. The same losses are therefore summed for any DP.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

FILL = -1


class GlobalBatchSampler:
    """Rows of a dataset by global step.

    Args:
        rows: size of the dataset.
        seed: shuffles each epoch differently; None keeps the order.

    Attributes:
        steps_per_epoch: whole global batches in the dataset (the rest of an epoch is dropped, as NeMo does); one when
            the dataset is smaller than a global batch, whose rows then repeat.
        repeats: whether they do.
    """

    def __init__(
        self,
        rows: int,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        data_rank: int,
        data_size: int,
        seed: int | None,
    ) -> None:
        if rows < 1:
            raise ValueError("a dataset without rows cannot be sampled")
        self.rows, self.seed = rows, seed
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.data_rank, self.data_size = data_rank, data_size
        self.repeats = rows < global_batch_size
        self.steps_per_epoch = max(1, rows // global_batch_size)
        self._epoch: tuple[int, np.ndarray] | None = None

    def step(self, step: int) -> list[list[int]]:
        """The micro-batches of this rank at global step `step`, counted over all epochs."""
        return self.share(self.global_batch(step))

    def global_batch(self, step: int) -> list[int]:
        """The rows that all ranks together take at global step `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        start = place * self.global_batch_size
        rows: list[int] = np.resize(order[start:], self.global_batch_size).tolist()
        return rows

    def all_rows(self) -> Iterator[list[list[int]]]:
        """Every row once, a global batch at a time; the last one is filled up with FILL."""
        for start in range(0, self.rows, self.global_batch_size):
            stop = min(start + self.global_batch_size, self.rows)
            rows = list(range(start, stop))
            yield self.share(rows + [FILL] * (self.global_batch_size - len(rows)))

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.arange(self.rows)
            if self.seed is not None:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            self._epoch = (epoch, order)
        return self._epoch[1]

    def share(self, rows: list[int]) -> list[list[int]]:
        """This rank's micro-batches of a global batch."""
        size = self.micro_batch_size
        micro_batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return micro_batches[self.data_rank :: self.data_size]
