"""Passes of prompt learning on a model that is whole on one device; on GPUs as CUDA graphs, with one launch for forward
and backward.

A model of 24 layers starts some two thousand kernels a micro-batch. Up to about a billion parameters a GPU ends each
before the host has started the next (0.4 B on an H100: 12 ms of kernels in a step of 37 ms). A graph starts them all
at once. It holds for one set of shapes, so micro-batches are rounded up to few (`data.ranks.packing.pack`), and only
what the host slows is captured: a large model has nothing to gain.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.logging import log
from hpclm.core.spec import Backends, StageSpec
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.data.ranks.transfer import base_of, expanded
from hpclm.engines.megatron.ranks import cuda_graph
from hpclm.engines.megatron.ranks.gpt_model import DTYPES
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.masked_loss import masked_mean
from hpclm.training.ranks import flash_attention as flash

# A pass whose launches take this share of its time on the device is bound by the host.
_HOST_BOUND = 0.7
# hidden² · tokens of a pass up to which a GPU may be done before the host has started its kernels: on an H100 a pass of
# 24 layers of 1024 and 2,048 tokens has 12 ms of kernels in 37 ms.
_SMALL = 1e10
# Shapes beyond so many stay as they are: each graph holds memory for its kernels' arguments.
_MOST_GRAPHS = 64

Key = tuple[object, ...]


def has_dropout(spec: StageSpec, *, frozen: bool) -> bool:
    """Whether a training step draws random numbers; a frozen model is one that only prompts are trained for."""
    base = 0.0 if frozen else max(spec.model.hidden_dropout, spec.model.attention_dropout)
    prompts = spec.prompt.encoder_dropout if spec.prompt is not None else 0.0
    return max(base, prompts) > 0.0


def usable(spec: StageSpec, groups: Groups, *, frozen: bool) -> bool:
    """Whether a stage's passes are such: no communication, no random numbers, no recomputation and no sizes that the
    tokens decide (of experts) in them."""
    return (
        frozen
        and not has_dropout(spec, frozen=frozen)
        and groups.tensor_size == groups.pipeline_size == 1
        and spec.trainer.recompute is None
        and spec.model.num_moe_experts is None
        and spec.backends.attention == Backends().attention
    )


def rounds_sizes(spec: StageSpec, groups: Groups) -> bool:
    """Whether micro-batches of prompt learning are rounded to few shapes: where graphs may pay, and attention does no
    work for what is added."""
    tokens = spec.batch.micro_batch_size * spec.data.max_seq_length if spec.data is not None else 0
    return (
        usable(spec, groups, frozen=True)
        and flash.usable_for(DTYPES[spec.trainer.precision], spec.model.kv_channels, groups.device)
        and spec.model.hidden_size**2 * tokens < _SMALL
    )


@dataclass
class _Timed:
    """A pass that was started kernel by kernel: the host's seconds for it, and events around it on the device."""

    host: float
    began: torch.cuda.Event
    ended: torch.cuda.Event

    def host_bound(self) -> bool | None:
        """None: the device is still at it."""
        if not self.ended.query():  # type: ignore[no-untyped-call]
            return None
        device: float = self.began.elapsed_time(self.ended)
        return 1000 * self.host > _HOST_BOUND * device


@dataclass
class _Graph:
    graph: torch.cuda.CUDAGraph
    batch: TrainingBatch
    found: dict[str, Tensor]


class FrozenPasses:
    """Forward and backward passes of a step's micro-batches on a frozen model without tensor and pipeline parallelism,
    as megatron-core's forward_backward_no_pipelining runs them; captured where that pays.

    What makes the soft prompts (an MLP, an LSTM) is not captured: it runs once a step, and its backward pass with the
    sum of the micro-batches' gradients.
    """

    def __init__(self, model: DistributedDataParallel, device: torch.device) -> None:
        self.model, self.module = model, model.module
        # what the loss is multiplied by, and the tokens that its sum is divided by
        self.factor, self.share = (torch.ones((), device=device) for _ in range(2))
        self.table: Tensor | None = None
        self.gradient: Tensor | None = None
        self.captures = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.graphs: dict[Key, _Graph] = {}
        self.seen: dict[Key, int] = {}
        self.times: dict[Key, _Timed] = {}
        self.told = False

    def __call__(
        self, micro_batches: list[TrainingBatch], *, share: float | None, loss_scale: float
    ) -> list[dict[str, Tensor]]:
        """Sums of each micro-batch's losses, as `masked_mean` gives them; gradients are in their buffers then, summed
        over the replicas.

        Args:
            share: see `masked_mean`.
        """
        table = self.module.prompts()
        self._set_table(table.detach())
        self.factor.fill_(loss_scale / len(micro_batches))
        if share is not None:
            self.share.fill_(share)
        losses = []
        for batch in micro_batches:
            heartbeat.beat()
            losses.append(self._pass(batch, shares=share is not None))
        torch.autograd.backward(table, self.gradient)
        finalize_model_grads([self.model])
        return losses

    def _set_table(self, table: Tensor) -> None:
        if self.table is None or self.gradient is None:
            self.table, self.gradient = table.clone(), torch.zeros_like(table)
        self.table.copy_(table)
        self.gradient.zero_()

    def _pass(self, batch: TrainingBatch, *, shares: bool) -> dict[str, Tensor]:
        if not self.captures:
            return self._work(batch, shares=shares)
        key = _key(batch, shares)
        graph = self.graphs.get(key)
        if graph is None and self._pays(key):
            graph = self._capture(batch, shares=shares)
            if graph is not None:
                self.graphs[key] = graph
        if graph is None:
            return self._measured(key, batch, shares=shares)
        torch._foreach_copy_(_tensors(graph.batch), _tensors(batch))
        graph.graph.replay()
        return {name: one.clone() for name, one in graph.found.items()}

    def _pays(self, key: Key) -> bool:
        """Whether passes of these shapes come again and are bound by the host."""
        timed = self.times.get(key)
        return timed is not None and len(self.graphs) < _MOST_GRAPHS and bool(timed.host_bound())

    def _measured(self, key: Key, batch: TrainingBatch, *, shares: bool) -> dict[str, Tensor]:
        """A pass kernel by kernel. The first one of a shape is not timed: kernels are loaded and memory is found."""
        self.seen[key] = self.seen.get(key, 0) + 1
        return self._work(batch, shares=shares) if self.seen[key] != 2 else self._timed(key, batch, shares)

    def _timed(self, key: Key, batch: TrainingBatch, shares: bool) -> dict[str, Tensor]:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        started = time.perf_counter()
        found = self._work(batch, shares=shares)
        self.times[key] = _Timed(time.perf_counter() - started, began, ended)
        ended.record()
        return found

    def _capture(self, batch: TrainingBatch, *, shares: bool) -> _Graph | None:
        static = _copied(batch)
        try:
            graph, found = cuda_graph.captured(lambda: self._work(static, shares=shares), self.pool)
        except RuntimeError as error:
            self.captures = False
            log(f"CUDA graphs are off, steps are slower: a capture failed: {str(error).splitlines()[0]}")
            return None
        if not self.told:
            log("the host bounds these steps: micro-batches are captured as CUDA graphs")
            self.told = True
        return _Graph(graph, static, found)

    def _work(self, batch: TrainingBatch, *, shares: bool) -> dict[str, Tensor]:
        assert self.table is not None
        assert self.gradient is not None
        # a leaf of this pass: gradients of an older one would be summed on the stream of its first use
        table = self.table.detach().requires_grad_()
        losses = self.module(batch, table)
        loss, found = masked_mean(batch.loss_mask, losses, share=self.share if shares else None)
        (gradient,) = torch.autograd.grad(loss * self.factor, table)
        self.gradient += gradient
        return found


def _key(batch: TrainingBatch, shares: bool) -> Key:
    return (shares, *((one.shape, one.stride(), one.dtype) for one in _all_tensors(batch)))


def _all_tensors(batch: TrainingBatch) -> Iterable[Tensor]:
    values = (getattr(batch, one.name) for one in fields(batch))
    return (one for one in values if isinstance(one, Tensor))


def _tensors(batch: TrainingBatch) -> list[Tensor]:
    return [base_of(one) for one in _all_tensors(batch)]


def _copied(batch: TrainingBatch) -> TrainingBatch:
    made: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            made[field.name] = expanded(base_of(value).clone(), value)
    return replace(batch, **made)
