"""DeepSpeed's ZeRO: state, gradients and weights divided over the ranks, in host memory or on disk where asked.

Checkpoints have whole tensors by the model's names, gathered one at a time and divided among the ranks that write
them: DeepSpeed's own files can be read by as many ranks alone, with pickles.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpclm.core import heartbeat
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.engines.hf.ranks import flat_tensors, optimizers
from hpclm.engines.hf.ranks.document_batches import DocumentBatch
from hpclm.engines.hf.ranks.flat_optimizers import FlatOptimizer
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.hf_loading import Weights, blocks_of
from hpclm.engines.hf.ranks.loss_model import LossModel
from hpclm.engines.hf.ranks.sharding import NO_RATE, diverged, is_last, plain_name, set_updates
from hpclm.formats.ranks.tensor_shard import TensorShard, whole

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def divide(model: Any, weights: Weights, spec: FineTuneStageSpec, dtype: torch.dtype) -> None:
    """Stage 3: fill the empty model layer by layer, and divide each before the next has memory."""
    import deepspeed

    deepspeed.init_distributed(dist_init_required=False)
    config = copy.deepcopy(spec.sharding.deepspeed)
    for name, block in list(blocks_of(model)):
        weights.fill([(name, block)], dtype)
        deepspeed.zero.Init(module=block, config_dict_or_path=config, dtype=dtype)
    weights.fill([("", model)], dtype)
    model.tie_weights()
    deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=dtype)


class ZeroSharding:
    """A DeepSpeed engine around a model whose weights are in place."""

    def __init__(self, model: LossModel, spec: FineTuneStageSpec, group: DataGroup) -> None:
        import deepspeed

        self.spec, self.group = spec, group
        named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        # the state is made by the updates that DeepSpeed takes to see how much memory they need
        optimizer = optimizers.build(spec.optim, named, group.device, flat=True)
        kind = type(optimizer)
        self.optimizer_name = f"DeepSpeed ZeRO: {kind.__module__.split('.')[0]}.{kind.__name__}"
        deepspeed.init_distributed(dist_init_required=False)
        config = copy.deepcopy(spec.sharding.deepspeed)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        parameters = self.engine.module.named_parameters()
        self.named = [(plain_name(name), one) for name, one in parameters if one.requires_grad]
        self.stage = {"zero1": 1, "zero2": 2, "zero3": 3}[spec.sharding.strategy]
        self.updates = 0
        self._filled: list[TensorShard] = []
        if isinstance(optimizer, FlatOptimizer):
            of_stage = flat_tensors.of_stage_3 if self.stage == 3 else flat_tensors.of_stage_1_or_2
            optimizer.place(of_stage(self.engine.optimizer))

    def accumulate(self, batches: list[DocumentBatch], weight: float) -> Tensor:
        # DeepSpeed takes the mean over the ranks
        share = self.group.world_size / max(1.0, weight)
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        for batch, last in is_last(batches):
            heartbeat.beat()
            self.engine.set_gradient_accumulation_boundary(last)
            loss = self.engine(batch.to(self.group.device))
            self.engine.backward(loss * share, scale_wrt_gas=False)
            if not last:
                self.engine.step()
            total += loss.detach().double()
        return total

    def update(self, rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        with heartbeat.waiting():
            norm = float(self.engine.get_global_grad_norm() or 0.0)
        overflow = bool(getattr(self.engine.optimizer, "overflow", False)) or not norm < float("inf")
        if overflow and self.spec.trainer.precision != "fp16":
            raise diverged(norm)
        self.updates += 0 if overflow else 1
        return norm

    @torch.no_grad()
    def loss(self, batch: DocumentBatch) -> Tensor:
        found: Tensor = self.engine.module(batch.to(self.group.device))
        return found

    def shards(self, *, loading: bool = False) -> list[TensorShard]:
        """To be written, each tensor on one rank; to be loaded into, all on every rank."""
        found = []
        self._link_states()
        for number, (name, parameter) in enumerate(self.named):
            writes = number % self.group.world_size == self.group.rank
            state = self._whole_state(name, parameter)
            if writes or loading:
                found += [whole(key, value, writes=writes) for key, value in state.items()]
        self._filled = found if loading else []
        return found

    def _whole_state(self, name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The fp32 weight and the optimizer's state, on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        heartbeat.beat()
        found = {name: safe_get_full_fp32_param(parameter)}
        for what in self._kinds():
            found[f"optimizer.{what}.{name}"] = safe_get_full_optimizer_state(parameter, what)
        found |= {f"optimizer.{what}.{name}": value for what, value in self._whole_states(parameter).items()}
        return {key: value.detach().float().cpu() for key, value in found.items() if value is not None}

    def _whole_states(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        inner = self._inner()
        return inner.whole_states(parameter) if isinstance(inner, FlatOptimizer) else {}

    def _link_states(self) -> None:
        """Have the optimizer make its state where it has none yet, and every parameter know its part of it."""
        zero, inner = self.engine.optimizer, self._inner()
        flat = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        without = [number for number, one in enumerate(flat) if not inner.state.get(one)]
        if without:
            rates = [group["lr"] for group in inner.param_groups]
            for group in inner.param_groups:
                group["lr"] = NO_RATE
            for number in without:
                self._make_state(zero, flat[number], number)
            for group, rate in zip(inner.param_groups, rates, strict=True):
                group["lr"] = rate
        if self.stage < 3:
            # DeepSpeed links them once, after the first group's first update, when other groups have none yet
            # (stage_1_and_2.py, _optimizer_step)
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def _make_state(self, zero: Any, flat: Tensor, number: int) -> None:
        """By an update that changes nothing."""
        value, gradient = flat.detach().clone(), flat.grad
        flat.grad = torch.zeros_like(flat)
        if self.stage == 3:
            zero._optimizer_step(number)
        else:
            group = self._inner().param_groups[number]
            others = self._inner().param_groups
            self._inner().param_groups = [group]
            self._inner().step()
            self._inner().param_groups = others
        flat.grad = gradient
        flat.copy_(value)
        for state in self._inner().state[flat].values():
            if isinstance(state, Tensor):
                state.zero_()

    def _kinds(self) -> list[str]:
        """Names of the optimizer's tensors."""
        entries = [entry for state in self._inner().state.values() for entry in state.items()]
        return sorted({key for key, value in entries if isinstance(value, Tensor) and value.dim() > 0})

    def _inner(self) -> torch.optim.Optimizer:
        """The client's optimizer, inside DeepSpeed's."""
        found = self.engine.optimizer
        while hasattr(found, "optimizer"):
            found = found.optimizer
        made: torch.optim.Optimizer = found
        return made

    def loaded(self) -> None:
        """Set what has been read."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        values = {shard.key: shard.data for shard in self._filled}
        for name, parameter in self.named:
            heartbeat.beat()
            value = values[name].to(self.group.device)
            safe_set_full_fp32_param(parameter, value)
            self._set_computed(parameter, value)
            for what in self._kinds():
                state = values[f"optimizer.{what}.{name}"]
                safe_set_full_optimizer_state(parameter, state.to(self.group.device), what)
            for what, mean in self._whole_states(parameter).items():
                mean.copy_(values[f"optimizer.{what}.{name}"])
        self._filled = []

    @torch.no_grad()
    def _set_computed(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The weight that the model computes with, which DeepSpeed sets from its fp32 one at the next step."""
        if self.stage < 3:
            parameter.copy_(value)
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        scaler = self._scaler()
        scale = [float(scaler.get("cur_scale", 1.0)), 0.0, 2.0]  # as `LossScale` has it, for other shardings
        return {"optimizer": {"updates": self.updates, "loss_scale": scale, "scaler": scaler}}

    def _scaler(self) -> dict[str, Any]:
        """Of fp16: the numbers of DeepSpeed's loss scaler (runtime/fp16/loss_scaler.py)."""
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        return {name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)}

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = int(state["optimizer"]["updates"])
        if self.spec.trainer.precision == "fp16":
            numbers = state["optimizer"].get("scaler") or {"cur_scale": state["optimizer"]["loss_scale"][0]}
            for name in self._scaler():
                if name in numbers:
                    setattr(self.engine.optimizer.loss_scaler, name, numbers[name])
        set_updates(self._inner(), self.updates)

    def trained(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        found = {name: safe_get_full_fp32_param(parameter) for name, parameter in self.named}
        dist.barrier()
        return {name: value.detach().float().cpu() for name, value in found.items() if value is not None}
