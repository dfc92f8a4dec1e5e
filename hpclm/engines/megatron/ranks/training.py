"""A step of training on megatron-core, and its validation; `training.ranks.training_loop` runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.learning_rate import learning_rate
from hpclm.core.spec import StageSpec
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.engines.megatron.ranks import experts, frozen_passes
from hpclm.engines.megatron.ranks.backend_modules import OPTIMIZERS
from hpclm.engines.megatron.ranks.data_parallel import data_parallel
from hpclm.engines.megatron.ranks.groups import Groups, seed_step
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.masked_loss import masked_mean
from hpclm.engines.megatron.ranks.optimizer import Optimizer
from hpclm.engines.megatron.ranks.parameter_parts import owned_parts, whole_parameters
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager
from hpclm.formats.ranks.shards import is_of_expert, sharded_tensors
from hpclm.formats.ranks.tensor_shard import Shard, divided
from hpclm.training.ranks.loss_scale import LossScale
from hpclm.training.ranks.training_loop import StepOutcome, TrainingLoop, TrainingResult, Validation
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


class TrainingSteps:
    """Steps of a stage (`training_loop.Steps`).

    Args:
        metrics: further validation results, by name; called on every rank, and the same on all.
    """

    def __init__(
        self,
        spec: StageSpec,
        groups: Groups,
        models: Sequence[LanguageModel],
        batches: Batches,
        stop: StopFlag,
        metrics: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        self.spec, self.groups, self.batches = spec, groups, batches
        self.metrics = metrics
        self.stop = stop
        self.module = models[0]
        self.modules = list(models)
        loss_scale = LossScale(spec.trainer.precision)
        self.models = data_parallel(models, spec.parallel)
        if loss_scale.active:
            self.module.config.grad_scale_func = loss_scale.apply
        self.optimizer = self._optimizer(loss_scale)
        trainer = spec.trainer
        self.schedule = spec.batch.schedule
        self.total_steps = trainer.max_steps or (trainer.max_epochs or 1) * batches.steps_per_epoch
        self.steps_per_epoch = batches.steps_per_epoch
        self.optimizer_name = self.optimizer.name
        frozen = self.module.frozen
        self.has_dropout = frozen_passes.has_dropout(spec, frozen=frozen)
        is_whole = frozen_passes.usable(spec, groups, frozen=frozen)
        self.passes = frozen_passes.FrozenPasses(self.models[0], groups.device) if is_whole else None
        self._next: dict[int, list[TrainingBatch]] = {}

    def _optimizer(self, loss_scale: LossScale) -> Optimizer:
        distributed = self.spec.parallel.distributed_optimizer
        found = (owned_parts(one) for one in self.models) if distributed else map(whole_parameters, self.modules)
        return OPTIMIZERS[self.spec.backends.optimizer](
            [part for parts in found for part in parts],
            self.spec.optim,
            self.spec.trainer.gradient_clip_norm,
            self.groups.device,
            loss_scale,
            norm_group=None if distributed else parallel_state.get_model_parallel_group(),
            expert_norm_group=self._expert_norm_group(distributed),
            publish=self._gather_weights if distributed and not self.spec.parallel.overlap else lambda: None,
        )

    def _expert_norm_group(self, distributed: bool) -> dist.ProcessGroup | None:
        if distributed or self.spec.parallel.expert == 1:
            return None
        group: dist.ProcessGroup = parallel_state.get_expert_tensor_model_pipeline_parallel_group()
        return group

    def _gather_weights(self, *, at_once: bool = False) -> None:
        """Each rank's share of the weights from the rank that updated it."""
        for model in self.models:
            model.start_param_sync(force_sync=at_once)

    def shards(self, *, loading: bool = False) -> Sequence[Shard]:
        """All weights, or in prompt learning the prompts alone, and the optimizer's state of them."""
        parallel = self.spec.parallel
        if parallel.distributed_optimizer and parallel.overlap and not loading:
            self._gather_weights(at_once=True)
        if self.module.frozen:
            weights = self.module.prompts.shards() if self.module.prompts is not None else []
        else:
            weights = [one for module in self.modules for one in sharded_tensors(module.gpt)]
        state = self.optimizer.sharded_state(weights)
        if self.module.frozen or loading:
            return [*weights, *state]
        if parallel.distributed_optimizer:
            return [*_written_by_one(weights), *state]
        return _written_by_one([*weights, *state])

    def step(self, step: int) -> StepOutcome:
        if not self.module.training:  # asking all modules takes as long as several layers
            for model in self.models:
                model.train()
        for model in self.models:
            model.zero_grad_buffer()
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
        norm = self.optimizer.step(self.learning_rate(step))
        owns_loss = self.groups.is_last_stage and self.groups.tensor_rank == 0
        owns_tokens = self.groups.is_first_stage and self.groups.tensor_rank == 0
        tokens = sum(_real_tokens(batch) for batch in micro_batches) if owns_tokens else 0
        told = [0.0, tokens, float(self.stop.requested), 0.0]
        sums = torch.tensor(told, dtype=torch.float64, device=self.groups.device)
        if owns_loss:
            sums[0] = torch.stack([item["loss"] for item in losses]).double().sum() / len(micro_batches)
        imbalance = experts.imbalance()
        if imbalance is not None:
            sums[3] = imbalance
        dist.all_reduce(sums)
        with heartbeat.waiting():
            loss, tokens, stops, balance = sums.tolist()
        found = {}
        if imbalance is not None:
            layers = self.spec.model.num_layers * len(micro_batches) * self.groups.data_size
            found["load_balancing_loss"] = balance / layers
        return StepOutcome(loss / self.groups.data_size, norm, tokens, stops > 0, found)

    def learning_rate(self, step: int) -> float:
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
        split = self.groups.context_size > 1
        group = parallel_state.get_context_parallel_group() if split else None
        losses: list[dict[str, Tensor]] = get_forward_backward_func()(
            forward_step_func=functools.partial(forward_step, weight=weight, group=group),
            data_iterator=[iter(micro_batches) for _ in self.models],
            model=list(self.models),
            num_microbatches=len(micro_batches),
            seq_length=length * self.groups.context_size,
            micro_batch_size=rows,
            forward_only=forward_only,
        )
        return losses

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Mean loss over every answer token, or every token."""
        for model in self.models:
            model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.groups.device)
        for micro_batches in self.batches.validation():
            for item in self._forward_backward(micro_batches, forward_only=True):
                if self.groups.is_last_stage and self.groups.tensor_rank == 0:
                    sums += torch.stack([item["total"], item["weight"]]).double()
        dist.all_reduce(sums)
        with heartbeat.waiting():
            total, weight = map(float, sums.tolist())
        if weight == 0:
            return Validation(None)
        return Validation(total / weight, self.metrics() if self.metrics is not None else {})

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.restore(state["optimizer"])


def train(
    context: StageContext,
    models: Sequence[LanguageModel],
    batches: Batches,
    manager: CheckpointManager,
    metrics: Callable[[], dict[str, float]] | None = None,
) -> TrainingResult:
    """All steps of the stage that are left."""
    spec = context.spec
    steps = TrainingSteps(spec, context.groups, models, batches, context.stop, metrics)
    return TrainingLoop(steps, spec.trainer, spec.checkpoint, manager, context.progress, context.stop).fit()


def forward_step(
    batches: Iterator[TrainingBatch],
    model: torch.nn.Module,
    *,
    weight: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]]:
    """megatron-core's forward step: output of this stage and, for the last stage, the loss function."""
    heartbeat.beat()
    batch = next(batches)
    return model(batch), functools.partial(masked_mean, batch.loss_mask, share=weight, group=group)


def _written_by_one(shards: Sequence[Shard]) -> list[Shard]:
    """The same shards, each written by one of the ranks that have it."""
    dense, experts = list[Shard](), list[Shard]()
    for one in shards:
        (experts if is_of_expert(one) else dense).append(one)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    theirs = parallel_state.get_expert_data_parallel_group()
    return [*divided(dense, group.rank(), group.size()), *divided(experts, theirs.rank(), theirs.size())]


def _real_tokens(batch: TrainingBatch) -> int:
    return batch.tokens.numel() if batch.real_tokens is None else batch.real_tokens
