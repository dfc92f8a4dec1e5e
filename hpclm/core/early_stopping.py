"""Early stopping on the validation loss."""

from __future__ import annotations

from hpclm.core.spec import EarlyStoppingSpec


class EarlyStopping:
    """Counts validations without an improvement, as PyTorch Lightning's EarlyStopping does (which NeMo 1.x uses):
    a loss improves on the best so far when it is lower by more than `min_delta`.

    Args:
        spec: None never stops.
    """

    def __init__(self, spec: EarlyStoppingSpec | None) -> None:
        self.spec = spec
        self.best: float | None = None
        self.stale = 0

    def observe(self, loss: float | None) -> None:
        """Record a validation loss; None (no validation set) is ignored."""
        if self.spec is None or loss is None:
            return
        if self.best is None or loss < self.best - self.spec.min_delta:
            self.best, self.stale = loss, 0
        else:
            self.stale += 1

    @property
    def should_stop(self) -> bool:
        return self.spec is not None and self.stale >= self.spec.patience

    def state(self) -> list[float | int | None]:
        """What is saved in a checkpoint."""
        return [self.best, self.stale]

    def restore(self, state: list[float | None]) -> None:
        self.best, self.stale = state[0], int(state[1] or 0)
