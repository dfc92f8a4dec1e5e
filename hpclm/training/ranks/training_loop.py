"""The training loop of every engine: steps, validation, checkpoints, early stopping, and graceful stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from hpclm.core.early_stopping import EarlyStopping
from hpclm.core.logging import log
from hpclm.core.spec import CheckpointSpec, TrainerSpec
from hpclm.formats.ranks import checkpoint_store
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager
from hpclm.formats.ranks.tensor_shard import Shard
from hpclm.worker.report import Progress, StoppedError
from hpclm.worker.signals import StopFlag


class ValidationMetrics(TypedDict, total=False):
    """Present if the recipe requests metrics in addition to the loss."""

    val_metrics: dict[str, float]


class TrainingResult(ValidationMetrics):
    """How the training ended, for the stage's result."""

    steps: int
    stopped_early: bool
    loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    best_checkpoint: str | None
    last_checkpoint: str
    seconds: float
    optimizer: str


@dataclass
class StepOutcome:
    """One step, summed over all ranks: mean loss, real tokens, whether any rank was asked to stop, and what else the
    engine measures, by name."""

    loss: float
    grad_norm: float
    tokens: float
    stop: bool
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Validation:
    """The validation loss, the same on all ranks, and other metrics; None where there is no validation set."""

    loss: float | None
    metrics: dict[str, float] = field(default_factory=dict)


class Steps(Protocol):
    """What an engine does in a step. Every method is collective.

    Attributes:
        steps_per_epoch: steps in which all rows are read once.
        optimizer_name: for the result.
    """

    steps_per_epoch: int
    optimizer_name: str

    def step(self, step: int) -> StepOutcome:
        """Update the weights by global step `step` (from 0)."""

    def validate(self, step: int) -> Validation:
        """Over the validation set, after `step` steps."""

    def learning_rate(self, step: int) -> float:
        """Of global step `step`."""

    def shards(self, *, loading: bool = False) -> Sequence[Shard]:
        """What a checkpoint has: weights that are trained, and the optimizer's state of each; `loading`: to be filled
        from one."""

    def state(self) -> dict[str, Any]:
        """The rest of the state, JSON-ready: `restore` takes it, once the shards are loaded."""

    def restore(self, state: dict[str, Any]) -> None: ...


class TrainingLoop:
    """Runs a stage's steps, starting from its newest checkpoint.

    Args:
        tries_saving: save after the first step, so that a run that could not be saved ends then and not after hours.
    """

    def __init__(
        self,
        steps: Steps,
        trainer: TrainerSpec,
        checkpoint: CheckpointSpec,
        manager: CheckpointManager,
        progress: Progress,
        stop: StopFlag,
        *,
        tries_saving: bool = False,
    ) -> None:
        self.tries_saving = tries_saving
        self.steps, self.trainer, self.checkpoint = steps, trainer, checkpoint
        self.manager, self.progress, self.stop = manager, progress, stop
        self.total_steps = trainer.max_steps or (trainer.max_epochs or 1) * steps.steps_per_epoch
        self.val_interval = _interval(trainer.val_check_interval, steps.steps_per_epoch)
        self.early_stopping = EarlyStopping(trainer.early_stopping)
        self.validation = Validation(None)
        self.loss: float | None = None

    def fit(self) -> TrainingResult:
        """Train to the end. Returns the stage's result; raises StoppedError after saving if a stop is requested."""
        try:
            return self._fit()
        except BaseException:
            self.manager.rescue()
            raise

    def _fit(self) -> TrainingResult:
        step = self._resume()
        began, first = time.time(), step
        while step < self.total_steps and not self.early_stopping.should_stop:
            started = time.time()
            outcome = self.steps.step(step)
            self.manager.check()
            step += 1
            self._report(step, outcome, time.time() - started, (time.time() - began) / (step - first))
            is_last = step == self.total_steps
            validated = (step % self.val_interval == 0 or is_last) and not outcome.stop
            if validated:
                self._validate(step)
            if validated or outcome.stop or self._save_due(step):
                self._save(step, self.validation.loss if validated else None)
            if outcome.stop:
                self.manager.settle()
                raise StoppedError(f"stop requested; saved step {step} of {self.total_steps}")
        self._settle()
        if step < self.total_steps:
            log(f"stopped early: {self.early_stopping.stale} validations in a row without a lower val_loss")
        return self._result(step, time.time() - began)

    def _resume(self) -> int:
        found = self.manager.resume()
        if found is None:
            self.progress.forget_after(0)
            return 0
        state = found.state
        checkpoint_store.load(found.path, self.steps.shards(loading=True))
        step = int(state["step"])
        self.steps.restore(state)
        self.validation = Validation(state["val_loss"])
        self.loss = state["loss"]
        self.early_stopping.restore(state["patience"])
        self.progress.forget_after(step)
        log(f"resumed from {found.path.name}")
        return step

    def _validate(self, step: int) -> None:
        self.progress.update(phase="validating")
        self.validation = found = self.steps.validate(step)
        self.early_stopping.observe(found.loss)
        if found.loss is not None:
            self.progress.update(phase="training", val_loss=found.loss)
            self.progress.metric("validation", step, {"loss": found.loss, **found.metrics})

    def _save_due(self, step: int) -> bool:
        interval = self.checkpoint.save_interval_steps
        if self.tries_saving and step == 1:
            return True
        return interval is not None and step % interval == 0

    def _save(self, step: int, val_loss: float | None) -> None:
        self.progress.update(phase="saving")
        self.manager.settle()  # before the next shards are made, which may take the place of the last ones
        # "patience" is what checkpoints call early stopping's counts
        state = {"loss": self.loss, **self.steps.state(), "patience": self.early_stopping.state()}
        self.manager.save(step, self.steps.shards(), state, val_loss)
        self.progress.update(phase="training")

    def _settle(self) -> None:
        """The last checkpoint must be complete before the stage is."""
        self.progress.update(phase="saving")
        self.manager.settle()

    def _report(self, step: int, outcome: StepOutcome, seconds: float, mean_seconds: float) -> None:
        self.loss = outcome.loss
        rate = outcome.tokens / seconds
        self.progress.update(
            phase="training",
            step=step,
            total_steps=self.total_steps,
            epoch=(step - 1) // self.steps.steps_per_epoch + 1,
            loss=outcome.loss,
            tokens_per_s=rate,
            seconds_left=(self.total_steps - step) * mean_seconds,
        )
        if step % self.trainer.log_interval_steps == 0 or step == self.total_steps:
            self.progress.metric(
                "train",
                step,
                {
                    "loss": outcome.loss,
                    "lr": self.steps.learning_rate(step - 1),
                    "grad_norm": outcome.grad_norm,
                    "tokens_per_s": rate,
                    "seconds_per_step": seconds,
                    **outcome.metrics,
                },
            )

    def _result(self, step: int, seconds: float) -> TrainingResult:
        best = self.manager.best[0] if self.manager.best else (None, None)
        result: TrainingResult = {
            "steps": step,
            "stopped_early": step < self.total_steps,
            "loss": self.loss,
            "val_loss": self.validation.loss,
            "best_val_loss": best[0],
            "best_checkpoint": None if best[1] is None else f"step-{best[1]:08d}",
            "last_checkpoint": f"step-{step:08d}",
            "seconds": seconds,
            "optimizer": self.steps.optimizer_name,
        }
        if self.validation.metrics:
            result["val_metrics"] = self.validation.metrics
        return result


def _interval(setting: int | float, steps_per_epoch: int) -> int:
    return setting if isinstance(setting, int) else max(1, int(setting * steps_per_epoch))
