"""DDP and FSDP2: torch's own data parallelism, with an optimizer of torch's interface.

Weights that are trained are fp32, and computed with in the recipe's precision. Adapters are small: each rank has them
whole, and their gradients are summed at the end of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate

from hpclm.core import heartbeat
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.engines.hf.ranks import optimizers
from hpclm.engines.hf.ranks.document_batches import DocumentBatch
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.loss_model import LossModel
from hpclm.engines.hf.ranks.precision import arithmetic
from hpclm.engines.hf.ranks.sharding import NO_RATE, clip_factor, diverged, is_last, set_updates, trainables
from hpclm.engines.hf.ranks.whole_tensors import local, whole
from hpclm.formats.ranks.tensor_shard import TensorShard
from hpclm.training.ranks.loss_scale import LossScale


class TorchSharding:
    """Of a model whose weights are in place: whole on every rank, or divided by `fully_shard` (`fsdp.shard`)."""

    def __init__(self, model: LossModel, spec: FineTuneStageSpec, group: DataGroup) -> None:
        self.model, self.spec, self.group = model, spec, group
        self.named = trainables(model)
        self.parameters = [parameter for _, parameter in self.named]
        device = self.parameters[0].device
        self.optimizer = optimizers.build(spec.optim, self.named, device)
        self.optimizer_name = f"{type(self.optimizer).__module__.split('.')[0]}.{type(self.optimizer).__name__}"
        self.loss_scale = LossScale(spec.trainer.precision, initial=2.0**16)
        self.updates = 0
        self.divided = [one for one in self.parameters if isinstance(one, DTensor)]
        self.whole = [one for one in self.parameters if not isinstance(one, DTensor)]
        self.fsdp: Any = model.model if spec.sharding.strategy == "fsdp" else None
        is_full = spec.method.method == "full"
        # gradients are summed while the backward pass goes on; of adapters there are too few for that
        self.ddp = self._distributed() if self.fsdp is None and is_full and group.world_size > 1 else None

    def _distributed(self) -> nn.Module:
        on_gpu = self.group.device.type == "cuda"
        return nn.parallel.DistributedDataParallel(
            self.model,
            device_ids=[self.group.device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # every rank has made the same
        )

    def _forward(self, batch: DocumentBatch) -> Tensor:
        with arithmetic(self.spec.trainer.precision, self.group.device):
            module = self.ddp if self.ddp is not None and torch.is_grad_enabled() else self.model
            loss: Tensor = module(batch)
        return loss

    def accumulate(self, batches: list[DocumentBatch], weight: float) -> Tensor:
        # DDP and FSDP take the mean over the ranks
        share = self.group.world_size / max(1.0, weight) * self.loss_scale.scale
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        for batch, last in is_last(batches):
            heartbeat.beat()
            with self._summed(last):
                loss = self._forward(batch.to(self.group.device))
                (loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double()
        return total

    @contextlib.contextmanager
    def _summed(self, last: bool) -> Iterator[None]:
        """DDP exchanges gradients after the last micro-batch alone. FSDP divides those of each, since they would lie
        whole on every rank in between; copies (`group_size`) exchange them after the last."""
        if self.fsdp is not None:
            self.fsdp.set_requires_all_reduce(last)
        if self.ddp is not None and not last:
            with self.ddp.no_sync():  # type: ignore[operator]
                yield
            return
        yield

    def _sum_whole(self) -> None:
        """The mean of the gradients that neither DDP nor FSDP has exchanged."""
        if self.ddp is not None or not self.whole or self.group.world_size == 1:
            return
        for parameter in self.whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in self.whole])
        dist.all_reduce(flat)
        flat /= self.group.world_size
        for parameter, piece in zip(self.whole, torch.split(flat, [one.numel() for one in self.whole]), strict=True):
            _gradient(parameter).copy_(piece.view_as(parameter))

    @torch.no_grad()
    def update(self, rate: float) -> float:
        self._sum_whole()
        norm = self._norm() / self.loss_scale.scale
        overflow = not norm < float("inf")
        if overflow and self.loss_scale.scale <= LossScale.MINIMUM:
            raise diverged(norm)
        factor = clip_factor(norm, self.spec.trainer.gradient_clip_norm) / self.loss_scale.scale
        if self.loss_scale.active:
            self.loss_scale.update(overflow=overflow)
        if not overflow:
            if factor != 1.0:
                for parameter in self.parameters:
                    local(_gradient(parameter)).mul_(factor)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.updates += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _norm(self) -> float:
        """Of all gradients, over all ranks."""
        divided = self._squares(self.divided)
        if self.divided:
            mesh = self.divided[0].device_mesh
            dist.all_reduce(divided, group=mesh.get_group(mesh.ndim - 1))
        square = divided + self._squares(self.whole)
        with heartbeat.waiting():
            found: float = float(square.item()) ** 0.5
        return found

    def _squares(self, parameters: Sequence[Tensor]) -> Tensor:
        norms = [torch.linalg.vector_norm(local(one.grad)) for one in parameters if one.grad is not None]
        if not norms:
            return torch.zeros((), device=self.parameters[0].device)
        return torch.stack(norms).square().sum()

    @torch.no_grad()
    def loss(self, batch: DocumentBatch) -> Tensor:
        return self._forward(batch.to(self.group.device))

    def shards(self, *, loading: bool = False) -> list[TensorShard]:
        self._make_states()
        found = []
        for name, parameter in self.named:
            found += self._pieces(name, parameter)
            for what, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor) and value.dim() > 0:
                    found += self._pieces(f"optimizer.{what}.{name}", value)
        return found

    def _pieces(self, key: str, value: Tensor) -> list[TensorShard]:
        """This rank's piece of a tensor; none where it has no part of it."""
        data = value.detach()
        if not isinstance(data, DTensor):
            return [TensorShard(key, data, tuple(data.shape), (0,) * data.dim(), self.group.rank)]
        shape, offset, writes = _place(data)
        part = data.to_local()
        return [TensorShard(key, part, shape, offset, 0 if writes else 1)] if part.numel() else []

    def _make_states(self) -> None:
        """Have the optimizer make its state, by a step that changes nothing, where it has none yet."""
        if all(self.optimizer.state[parameter] for parameter in self.parameters):
            return
        for group in self.optimizer.param_groups:
            group["lr"] = NO_RATE
        kept = [local(parameter.detach()).clone() for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept, strict=True):
                local(parameter.detach()).copy_(value)
                for state in self.optimizer.state[parameter].values():
                    if isinstance(state, Tensor):
                        local(state).zero_()
        set_updates(self.optimizer, self.updates)

    def loaded(self) -> None:
        """Everything was filled in place. What FSDP has gathered for an earlier pass is no longer right."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def state(self) -> dict[str, Any]:
        return {"optimizer": {"updates": self.updates, "loss_scale": self.loss_scale.state()}}

    def restore(self, state: dict[str, Any]) -> None:
        found = state["optimizer"]
        self.updates = int(found["updates"])
        self.loss_scale.restore(found["loss_scale"])
        set_updates(self.optimizer, self.updates)

    def trained(self) -> dict[str, Tensor]:
        return {name: whole(parameter.detach()).cpu().clone() for name, parameter in self.named}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _place(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Shape of the whole, this rank's offset in it, and whether this rank writes its part."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = tensor.device_mesh
    _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    coordinate = mesh.get_coordinate() or ()
    same = [place for place, kind in zip(coordinate, tensor.placements, strict=True) if isinstance(kind, Replicate)]
    return tuple(tensor.shape), tuple(offset), not any(same)
