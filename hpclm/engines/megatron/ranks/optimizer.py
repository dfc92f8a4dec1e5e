"""AdamW over fp32 master weights, for full training and for soft prompts alike.

megatron-core's optimizer classes assert CUDA tensor types, so they cannot run the same recipe on a CPU; this one is
the same arithmetic (Megatron's mixed-precision optimizer: fp32 masters, fp32 gradients, one global norm over the
model-parallel group) on torch's fused AdamW. Gradients come from megatron-core's DistributedDataParallel. A rank
updates the parts of its parameters that it is given: all of them, or its share under the distributed optimizer; where
the optimizer is offloaded, in host memory (Ren et al. 2021, arXiv:2101.06840).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import nn

from hpclm.core import heartbeat
from hpclm.core.spec import OptimSpec
from hpclm.engines.megatron.ranks.parameter_parts import Part, PlacedParts
from hpclm.formats.ranks.parameters import is_experts
from hpclm.formats.ranks.staging import Staging
from hpclm.formats.ranks.tensor_shard import Shard, TensorShard
from hpclm.training.ranks.loss_scale import LossScale


class OptimizerState(TypedDict):
    """What a checkpoint stores in addition to the tensors: updates made (skipped steps make none), and of the loss
    scaling its scale, good steps and the overflows before it is halved."""

    updates: int
    loss_scale: list[float]


class Optimizer:
    """Updates the trainable parameters this rank holds; possibly none (prompt learning on a later pipeline stage).

    Args:
        parts: what this rank updates.
        norm_group: ranks that have all of the gradient between them; None: all ranks.
        expert_norm_group: the same for the experts under expert parallelism, where those are other ranks.
        publish: called after an update, to give the new weights to the ranks that did not make them.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        optim: OptimSpec,
        clip_norm: float,
        device: torch.device,
        loss_scale: LossScale,
        *,
        norm_group: dist.ProcessGroup | None = None,
        expert_norm_group: dist.ProcessGroup | None = None,
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts = list(parts)
        self.norm_group, self.expert_norm_group, self.publish = norm_group, expert_norm_group, publish
        weights = [part.weight() for part in self.parts]
        # gradients go there, and weights come from there
        self.host = Staging() if optim.offload else None
        self.masters = [self._master(one) for one in weights]
        # masters in another type or place than the weights, which are copied from them
        self.rounded = [(w, m) for w, m in zip(weights, self.masters, strict=True) if w is not m]
        self.clip_norm, self.loss_scale = clip_norm, loss_scale
        self.updates = 0
        self.device = device
        self.name = "torch.optim.AdamW(fused)" + (", in host memory" if optim.offload else "")
        # Megatron's rule (optimizer/__init__.py, _get_param_groups): no decay for biases and one-dimensional weights
        decay = [m for m, p in zip(self.masters, self.parts, strict=True) if p.parameter.dim() > 1]
        no_decay = [m for m, p in zip(self.masters, self.parts, strict=True) if p.parameter.dim() <= 1]
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

    def _master(self, weight: torch.Tensor) -> torch.Tensor:
        """fp32: the weight itself where it is that, and is not offloaded."""
        master = weight if weight.dtype == torch.float32 else weight.float()
        return master if self.host is None else Staging().copies([master])[0]

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """One update from the parameters' `main_grad` (fp32). Returns the global gradient norm before clipping.

        In fp16 an overflow skips the update and the norm is infinite or NaN; elsewhere, and where no smaller loss
        scale would help, that raises FloatingPointError.
        """
        gradients = [part.gradient() for part in self.parts]
        norm = self._gradient_norm(gradients) / self.loss_scale.scale
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
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)
        self._update(gradients, lr)
        self.publish()
        return norm

    def _update(self, gradients: list[torch.Tensor], lr: float) -> None:
        if self.host is not None:
            gradients = self.host.copies(gradients)
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = lr
            self.adam.step()
        self.updates += 1
        if self.rounded:
            torch._foreach_copy_([weight for weight, _ in self.rounded], [master for _, master in self.rounded])
        for master in self.masters:
            master.grad = None

    def _gradient_norm(self, gradients: list[torch.Tensor]) -> float:
        dense, experts = list[torch.Tensor](), list[torch.Tensor]()
        for gradient, part in zip(gradients, self.parts, strict=True):
            if _counts(part.parameter):
                (experts if is_experts(part.parameter) else dense).append(gradient)
        if self.expert_norm_group is None:
            square = self._square([*dense, *experts], self.norm_group)
        else:
            square = self._square(dense, self.norm_group) + self._square(experts, self.expert_norm_group)
        # not math.sqrt, which rounds differently: losses are compared bit by bit
        with heartbeat.waiting():
            norm: float = float(square.item()) ** 0.5
        return norm

    def _square(self, gradients: list[torch.Tensor], group: dist.ProcessGroup | None) -> torch.Tensor:
        """Of the norm over the ranks of `group`."""
        square = torch.zeros(1, dtype=torch.float32, device=self.device)
        if gradients:
            square += torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) ** 2
        dist.all_reduce(square, group=group)
        return square

    def sharded_state(self, shards: Iterable[Shard]) -> list[TensorShard]:
        """Masters and Adam moments as pieces named `optimizer.<what>.<parameter>`, placed as their parameters are.

        Creates zero moments where there are none yet, so that a checkpoint can also be loaded into the result.
        """
        state: list[TensorShard] = []
        placed = PlacedParts(self.parts, self.masters)
        for shard in shards:
            for piece, master in placed.of(shard):
                moments = self._moments(master)
                values: dict[str, torch.Tensor] = {"exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
                if shard.data.dtype != torch.float32:
                    values["master"] = master
                state += [piece.shard(f"optimizer.{what}.{shard.key}", value) for what, value in values.items()]
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
        for weight, master in self.rounded:
            if weight.dtype == torch.float32:  # a checkpoint has it once
                master.copy_(weight)
        for master in self.masters:
            self._moments(master)["step"].fill_(float(self.updates))


def _counts(parameter: nn.Parameter) -> bool:
    """Whether this rank, of those that have the same parameter, counts it in the norm."""
    if not param_is_not_shared(parameter):
        return False
    if is_experts(parameter):
        parted = getattr(parameter, "tensor_model_parallel", False)
        return parted or parallel_state.get_expert_tensor_parallel_rank() == 0
    counts: bool = param_is_not_tensor_parallel_duplicate(parameter)
    return counts
