"""The training loop: steps, validation, checkpoints, and graceful stop."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.logging import log
from hpclm.core.spec import StageSpec
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.engines.megatron.ranks import frozen_passes
from hpclm.engines.megatron.ranks.backend_modules import OPTIMIZERS
from hpclm.engines.megatron.ranks.early_stopping import EarlyStopping
from hpclm.engines.megatron.ranks.groups import Groups, seed_step
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.masked_loss import masked_mean
from hpclm.engines.megatron.ranks.optimizer import LossScale, learning_rate
from hpclm.formats.ranks import checkpoint_store
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager
from hpclm.formats.ranks.shards import sharded_tensors
from hpclm.worker.report import Progress, StoppedError
from hpclm.worker.signals import StopFlag


class Batches(Protocol):
    """What a stage trains on, as this data-parallel rank sees it."""

    steps_per_epoch: int

    def train(self, step: int) -> list[TrainingBatch]:
        """The micro-batches of global step `step` (from 0, over all epochs)."""

    def weight(self, step: int) -> float | None:
        """Tokens that count in the global batch of `step`, whose mean loss is then the step's; None takes the mean of
        each micro-batch, and the mean of those."""

    def validation(self) -> Iterator[list[TrainingBatch]]:
        """The validation set in groups of micro-batches, as many groups and micro-batches on every rank."""


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
    """One step, summed over all ranks: mean loss, real tokens, and whether any rank was asked to stop."""

    loss: float
    grad_norm: float
    tokens: float
    stop: bool


class Trainer:
    """Runs a stage's steps, starting from its newest checkpoint.

    Args:
        metrics: further validation results, by name; called on every rank, and the same on all.
    """

    def __init__(
        self,
        spec: StageSpec,
        groups: Groups,
        model: LanguageModel,
        batches: Batches,
        manager: CheckpointManager,
        progress: Progress,
        stop: StopFlag,
        metrics: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.spec, self.groups, self.batches = spec, groups, batches
        self.metrics = metrics
        self.val_metrics: dict[str, float] = {}
        self.manager, self.progress, self.stop = manager, progress, stop
        self.module = model
        self.model = DistributedDataParallel(
            config=model.config,
            ddp_config=DistributedDataParallelConfig(grad_reduce_in_fp32=True),
            module=model,
        )
        model.config.finalize_model_grads_func = finalize_model_grads
        model.config.no_sync_func = self.model.no_sync
        loss_scale = LossScale(spec.trainer.precision)
        if loss_scale.active:
            model.config.grad_scale_func = loss_scale.apply
        optimizer = OPTIMIZERS[spec.backends.optimizer]
        self.optimizer = optimizer(model, spec.optim, spec.trainer.gradient_clip_norm, groups.device, loss_scale)
        trainer = spec.trainer
        self.schedule = spec.batch.schedule
        self.total_steps = trainer.max_steps or (trainer.max_epochs or 1) * batches.steps_per_epoch
        self.val_interval = _interval(trainer.val_check_interval, batches.steps_per_epoch)
        self.has_dropout = frozen_passes.has_dropout(spec, frozen=model.frozen)
        is_whole = frozen_passes.usable(spec, groups, frozen=model.frozen)
        self.passes = frozen_passes.FrozenPasses(self.model, groups.device) if is_whole else None
        self.early_stopping = EarlyStopping(trainer.early_stopping)
        self.val_loss: float | None = None
        self.loss: float | None = None
        self._next: dict[int, list[TrainingBatch]] = {}

    def shards(self) -> list[ShardedTensor]:
        """What a checkpoint of this stage contains: all weights, or in prompt learning the prompts alone."""
        if self.module.frozen:
            return self.module.prompts.shards() if self.module.prompts is not None else []
        return sharded_tensors(self.module.gpt)

    def fit(self) -> TrainingResult:
        """Train to the end. Returns the stage's result; raises StoppedError after saving if a stop is requested."""
        step = self._resume()
        began, first = time.time(), step
        while step < self.total_steps:
            started = time.time()
            outcome = self._step(step)
            step += 1
            self._report(step, outcome, time.time() - started, (time.time() - began) / (step - first))
            is_last = step == self.total_steps
            validated = (step % self.val_interval == 0 or is_last) and not outcome.stop
            if validated:
                self.val_loss = self._validate(step)
                self.early_stopping.observe(self.val_loss)
            if validated or outcome.stop or self._save_due(step):
                self._save(step, self.val_loss if validated else None)
            if outcome.stop:
                raise StoppedError(f"stop requested; saved step {step} of {self.total_steps}")
            if self.early_stopping.should_stop and not is_last:
                log(f"stopped early: {self.early_stopping.stale} validations in a row without a lower val_loss")
                break
        return self._result(step, time.time() - began)

    def _resume(self) -> int:
        found = self.manager.resume()
        if found is None:
            self.progress.forget_after(0)
            return 0
        state, shards = found.state, self.shards()
        checkpoint_store.load(found.path, [*shards, *self.optimizer.sharded_state(shards)])
        step = int(state["step"])
        self.optimizer.restore(state["optimizer"])
        self.val_loss = state["val_loss"]
        self.loss = state["loss"]
        self.early_stopping.restore(state["patience"])
        self.progress.forget_after(step)
        log(f"resumed from {found.path.name}")
        return step

    def _step(self, step: int) -> StepOutcome:
        if not self.module.training:  # asking all modules takes as long as several layers
            self.model.train()
        self.model.zero_grad_buffer()
        if self.has_dropout:
            # Seeded by the step, so that a resumed run draws the same masks as an uninterrupted one.
            seed_step(self.spec.trainer.seed, step, self.groups)
        micro_batches = self._next.pop(step, None) or self.batches.train(step)
        weight = self.batches.weight(step)
        share = None if weight is None else max(1.0, weight) / (len(micro_batches) * self.groups.data_size)
        if self.passes is None:
            losses = self._forward_backward(micro_batches, forward_only=False, weight=share)
        else:
            losses = self.passes(micro_batches, share=share, loss_scale=self.optimizer.loss_scale.scale)
        self._prefetch(step + 1)
        norm = self.optimizer.step(self._learning_rate(step))
        owns_loss = self.groups.is_last_stage and self.groups.tensor_rank == 0
        owns_tokens = self.groups.is_first_stage and self.groups.tensor_rank == 0
        tokens = sum(_real_tokens(batch) for batch in micro_batches) if owns_tokens else 0
        sums = torch.tensor([0.0, tokens, float(self.stop.requested)], dtype=torch.float64, device=self.groups.device)
        if owns_loss:
            sums[0] = torch.stack([item["loss"] for item in losses]).double().sum() / len(micro_batches)
        dist.all_reduce(sums)
        with heartbeat.waiting():
            loss, tokens, stops = sums.tolist()
        return StepOutcome(loss / self.groups.data_size, norm, tokens, stops > 0)

    def _learning_rate(self, step: int) -> float:
        optim, samples = self.spec.optim, self.spec.trainer.train_samples
        if samples is not None:
            return learning_rate(optim, self.schedule.consumed(step), samples, self.schedule.at(step))
        return learning_rate(optim, step, self.total_steps)

    def _prefetch(self, step: int) -> None:
        """Make the next step's micro-batches while a GPU is still at work on this one's."""
        if self.groups.device.type == "cuda" and step < self.total_steps:
            self._next = {step: self.batches.train(step)}

    def _forward_backward(
        self, micro_batches: list[TrainingBatch], *, forward_only: bool, weight: float | None = None
    ) -> list[dict[str, Tensor]]:
        rows, length = micro_batches[0].tokens.shape
        losses: list[dict[str, Tensor]] = get_forward_backward_func()(
            forward_step_func=functools.partial(forward_step, weight=weight),
            data_iterator=iter(micro_batches),
            model=[self.model],
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
        )
        return losses

    @torch.no_grad()
    def _validate(self, step: int) -> float | None:
        """Mean loss over every answer token (or every token) of the validation set, the same on all ranks; None where
        there is no such set."""
        self.progress.update(phase="validating")
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.groups.device)
        for micro_batches in self.batches.validation():
            for item in self._forward_backward(micro_batches, forward_only=True):
                if self.groups.is_last_stage and self.groups.tensor_rank == 0:
                    sums += torch.stack([item["total"], item["weight"]]).double()
        dist.all_reduce(sums)
        with heartbeat.waiting():
            total, weight = map(float, sums.tolist())
        if weight == 0:
            return None
        loss = total / weight
        self.val_metrics = self.metrics() if self.metrics is not None else {}
        self.progress.update(phase="training", val_loss=loss)
        self.progress.metric("validation", step, {"loss": loss, **self.val_metrics})
        return loss

    def _save_due(self, step: int) -> bool:
        interval = self.spec.checkpoint.save_interval_steps
        return interval is not None and step % interval == 0

    def _save(self, step: int, val_loss: float | None) -> None:
        self.progress.update(phase="saving")
        shards = self.shards()
        tensors = [*shards, *self.optimizer.sharded_state(shards)]
        self.manager.save(step, tensors, self._state(), val_loss)
        self.progress.update(phase="training")

    def _state(self) -> dict[str, object]:
        # "patience" is what checkpoints call early stopping's counts
        return {"loss": self.loss, "optimizer": self.optimizer.state(), "patience": self.early_stopping.state()}

    def _report(self, step: int, outcome: StepOutcome, seconds: float, mean_seconds: float) -> None:
        self.loss = outcome.loss
        rate = outcome.tokens / seconds
        self.progress.update(
            phase="training",
            step=step,
            total_steps=self.total_steps,
            epoch=(step - 1) // self.batches.steps_per_epoch + 1,
            loss=outcome.loss,
            tokens_per_s=rate,
            seconds_left=(self.total_steps - step) * mean_seconds,
        )
        if step % self.spec.trainer.log_interval_steps == 0 or step == self.total_steps:
            self.progress.metric(
                "train",
                step,
                {
                    "loss": outcome.loss,
                    "lr": self._learning_rate(step - 1),
                    "grad_norm": outcome.grad_norm,
                    "tokens_per_s": rate,
                    "seconds_per_step": seconds,
                },
            )

    def _result(self, step: int, seconds: float) -> TrainingResult:
        best = self.manager.best[0] if self.manager.best else (None, None)
        result: TrainingResult = {
            "steps": step,
            "stopped_early": step < self.total_steps,
            "loss": self.loss,
            "val_loss": self.val_loss,
            "best_val_loss": best[0],
            "best_checkpoint": None if best[1] is None else f"step-{best[1]:08d}",
            "last_checkpoint": f"step-{step:08d}",
            "seconds": seconds,
            "optimizer": "torch.optim.AdamW(fused)",
        }
        if self.val_metrics:
            result["val_metrics"] = self.val_metrics
        return result


def forward_step(
    batches: Iterator[TrainingBatch], model: torch.nn.Module, *, weight: float | None = None
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]]:
    """megatron-core's forward step: output of this stage and, for the last stage, the loss function."""
    heartbeat.beat()
    batch = next(batches)
    return model(batch), functools.partial(masked_mean, batch.loss_mask, share=weight)


def _interval(setting: int | float, steps_per_epoch: int) -> int:
    return setting if isinstance(setting, int) else max(1, int(setting * steps_per_epoch))


def _real_tokens(batch: TrainingBatch) -> int:
    return batch.tokens.numel() if batch.real_tokens is None else batch.real_tokens
