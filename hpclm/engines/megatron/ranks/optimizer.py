"""AdamW over fp32 master weights, for full training and for soft prompts alike.

megatron-core's optimizer classes assert CUDA tensor types, so they cannot run the same recipe on a CPU; this one is
the same arithmetic (Megatron's mixed-precision optimizer: fp32 masters, fp32 gradients, one global norm over the
model-parallel group) on torch's fused AdamW. Gradients come from megatron-core's DistributedDataParallel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TypedDict

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from hpclm.core import heartbeat
from hpclm.core.spec import OptimSpec
from hpclm.formats.ranks.parameters import attributes
from hpclm.training.ranks.loss_scale import LossScale


class OptimizerState(TypedDict):
    """What a checkpoint stores in addition to the tensors: updates made (skipped steps make none), and of the loss
    scaling its scale, good steps and the overflows before it is halved."""

    updates: int
    loss_scale: list[float]


class Optimizer:
    """Updates the trainable parameters this rank holds; possibly none (prompt learning on a later pipeline stage)."""

    name = "torch.optim.AdamW(fused)"

    def __init__(
        self,
        module: torch.nn.Module,
        optim: OptimSpec,
        clip_norm: float,
        device: torch.device,
        loss_scale: LossScale,
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in self.parameters]
        self.clip_norm, self.loss_scale = clip_norm, loss_scale
        self.updates = 0
        self.device = device
        # Megatron's rule (optimizer/__init__.py, _get_param_groups): no decay for biases and one-dimensional weights
        decay = [m for m, p in zip(self.masters, self.parameters, strict=True) if p.dim() > 1]
        no_decay = [m for m, p in zip(self.masters, self.parameters, strict=True) if p.dim() <= 1]
        groups = [
            {"params": decay, "weight_decay": optim.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.adam = (
            torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.epsilon, fused=True)
            if groups
            else None
        )

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update from the parameters' `main_grad` (fp32). Returns the global gradient norm before clipping.

        In fp16 an overflow skips the update and the norm is infinite or NaN; elsewhere, and where no smaller loss
        scale would help, that raises FloatingPointError.
        """
        norm = self._gradient_norm() / self.loss_scale.scale
        overflow = not math.isfinite(norm)
        if overflow and self.loss_scale.scale <= LossScale.MINIMUM:
            raise FloatingPointError(f"the gradient norm is {norm}: the training diverged; lower optim.lr")
        if self.loss_scale.active:
            factor = 1.0 / self.loss_scale.scale
            self.loss_scale.update(overflow=overflow)
            if overflow:
                return norm
        else:
            factor = 1.0
        if self.clip_norm > 0:
            factor *= min(1.0, self.clip_norm / (norm + 1e-6))
        gradients = [attributes(parameter).main_grad for parameter in self.parameters]
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = lr
            self.adam.step()
        self.updates += 1
        rounded = [(p.detach(), m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        if rounded:
            torch._foreach_copy_([p for p, _ in rounded], [m for _, m in rounded])
        for master in self.masters:
            master.grad = None
        return norm

    def _gradient_norm(self) -> float:
        counted = [
            attributes(parameter).main_grad
            for parameter in self.parameters
            if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter)
        ]
        square = torch.zeros(1, dtype=torch.float32, device=self.device)
        if counted:
            square += torch.linalg.vector_norm(torch.stack(torch._foreach_norm(counted))) ** 2
        dist.all_reduce(square, group=parallel_state.get_model_parallel_group())
        # not math.sqrt, which rounds differently: losses are compared bit by bit
        with heartbeat.waiting():
            norm: float = float(square.item()) ** 0.5
        return norm

    def sharded_state(self, shards: Iterable[ShardedTensor]) -> list[ShardedTensor]:
        """Masters and Adam moments as pieces named `optimizer.<what>.<parameter>`, placed as their parameters are.

        Creates zero moments where there are none yet, so that a checkpoint can also be loaded into the result.
        """
        state: list[ShardedTensor] = []
        by_pointer = {p.data_ptr(): m for p, m in zip(self.parameters, self.masters, strict=True)}
        for shard in shards:
            master = _owner(shard, by_pointer, self.parameters, self.masters)
            if master is None:
                continue
            moments = self._moments(master)
            values: dict[str, torch.Tensor] = {"exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
            if shard.data.dtype != torch.float32:
                values["master"] = master
            for what, value in values.items():
                data = _same_view(shard, value)
                state.append(replace(shard, key=f"optimizer.{what}.{shard.key}", data=data, dtype=data.dtype))
        return state

    def _moments(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.adam is not None
        state: dict[str, torch.Tensor] = self.adam.state[master]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        return state

    def state(self) -> OptimizerState:
        return {"updates": self.updates, "loss_scale": self.loss_scale.state()}

    def restore(self, state: OptimizerState) -> None:
        """Continue from `state`; Adam's bias correction counts the updates."""
        self.updates = state["updates"]
        self.loss_scale.restore(state["loss_scale"])
        for master in self.masters:
            self._moments(master)["step"].fill_(float(self.updates))


def _owner(
    shard: ShardedTensor,
    by_pointer: dict[int, torch.Tensor],
    parameters: list[torch.nn.Parameter],
    masters: list[torch.Tensor],
) -> torch.Tensor | None:
    """The master of the parameter whose storage `shard` is, or a part of."""
    if shard.data.data_ptr() in by_pointer:
        return by_pointer[shard.data.data_ptr()]
    storage = shard.data.untyped_storage().data_ptr()
    start = shard.data.data_ptr()
    for parameter, master in zip(parameters, masters, strict=True):
        begin = parameter.data_ptr()
        end = begin + parameter.numel() * parameter.element_size()
        if parameter.untyped_storage().data_ptr() == storage and begin <= start < end:
            return master
    return None


def _same_view(shard: ShardedTensor, value: torch.Tensor) -> torch.Tensor:
    """The part of `value` (shaped as the whole parameter) that `shard.data` is of the parameter."""
    if tuple(value.shape) == tuple(shard.data.shape):
        return value
    # SwiGLU's fused weight is stored as two pieces along the first axis
    rows: int = shard.data.shape[0]
    first: int = shard.data.storage_offset() // max(1, math.prod(shard.data.shape[1:]))
    return value[first % value.shape[0] :][:rows]
