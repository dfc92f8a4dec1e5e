"""A fine-tuning stage: rows, model, method, sharding, training; and its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.files import write_json
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.learning_rate import learning_rate
from hpclm.core.logging import log
from hpclm.data.ranks.prepared_rows import PreparedRows
from hpclm.engines.hf.ranks import adapters, base_models, divided_layers, fsdp, zero
from hpclm.engines.hf.ranks.document_batches import InstructionBatches
from hpclm.engines.hf.ranks.hf_groups import DataGroup, seed_step
from hpclm.engines.hf.ranks.hf_stage import HfStage
from hpclm.engines.hf.ranks.loss_model import LossModel
from hpclm.engines.hf.ranks.precision import arithmetic, dtype_of
from hpclm.engines.hf.ranks.prepared_instructions import prepared
from hpclm.engines.hf.ranks.sharding import Sharding
from hpclm.engines.hf.ranks.torch_sharding import TorchSharding
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager
from hpclm.formats.ranks.tensor_shard import TensorShard, whole
from hpclm.training.ranks.training_loop import StepOutcome, TrainingLoop, Validation
from hpclm.worker.signals import StopFlag


def run(stage: HfStage) -> dict[str, object]:
    """Returns the stage's result."""
    spec, group = stage.spec, stage.group
    stage.progress.update(phase="data")
    train = PreparedRows(prepared(stage, "train"))
    validation = PreparedRows(prepared(stage, "validation")) if spec.data.validation else None
    batches = InstructionBatches(spec, train, validation, group.rank, group.world_size)
    stage.progress.update(phase="loading the model")
    found = base_models.start(stage)
    model, sharding = sharded(found, spec, group)
    with arithmetic(spec.trainer.precision, group.device):
        apart = model.check_rows_apart(found.vocabulary, group.device)
    if not apart and group.rank == 0:
        log("this model does not keep the rows of one sequence apart, so that each is computed alone, which is slower")
    steps = FineTuningSteps(spec, group, model, sharding, batches, stage.stop)
    card = FineTunedCard(found, spec, steps)
    manager = CheckpointManager(stage.paths.checkpoints, spec.checkpoint, card.write)
    loop = TrainingLoop(steps, spec.trainer, spec.checkpoint, manager, stage.progress, stage.stop, tries_saving=True)
    result = loop.fit()
    return {
        **result,
        "method": spec.method.method,
        "sharding": spec.sharding.strategy,
        "trained_parameters": sum(getattr(one, "ds_numel", one.numel()) for _, one in steps.named_trainables()),
        "train_rows": vars(train.counts),
        "validation_rows": None if validation is None else vars(validation.counts),
        "samples": len(batches.samples),
        "rows_kept_apart_by": model.attention if model.keeps_rows_apart else "one row at a time",
    }


def sharded(found: base_models.Started, spec: FineTuneStageSpec, group: DataGroup) -> tuple[LossModel, Sharding]:
    model, strategy = found.model, spec.sharding.strategy
    if spec.sharding.checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.2x
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    compute = dtype_of(spec.trainer.precision)
    # DeepSpeed keeps fp32 masters of its own
    dtype = torch.float32 if spec.method.method == "full" and not strategy.startswith("zero") else compute
    if strategy == "fsdp":
        fsdp.shard(model, found.weights, spec, group, dtype)
    elif strategy == "zero3":
        zero.divide(model, found.weights, spec, dtype)
    else:
        found.weights.fill([("", model)], dtype)
        model.tie_weights()
    virtual = found.attach(spec, group)
    if strategy == "fsdp":
        fsdp.place_adapters(model, spec, group)
    if strategy == "zero3":
        divided_layers.gathered_by_zero(model)
        for parameter in model.parameters():
            if parameter.requires_grad:  # DeepSpeed casts nothing at stage 3, and keeps fp32 masters
                parameter.data = parameter.data.to(compute)
    loss_model = LossModel(model, model, virtual)
    loss_model.train()
    if strategy.startswith("zero"):
        return loss_model, zero.ZeroSharding(loss_model, spec, group)
    return loss_model, TorchSharding(loss_model, spec, group)


def persistent_buffers(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that belong to a model's weights, as a router's bias; the others are computed."""
    return [
        (f"{path}.{name}".lstrip("."), buffer)
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


class FineTuningSteps:
    """Steps of a stage (`training_loop.Steps`)."""

    def __init__(
        self,
        spec: FineTuneStageSpec,
        group: DataGroup,
        model: LossModel,
        sharding: Sharding,
        batches: InstructionBatches,
        stop: StopFlag,
    ) -> None:
        self.spec, self.group, self.model, self.sharding = spec, group, model, sharding
        self.batches, self.stop = batches, stop
        self.steps_per_epoch = batches.steps_per_epoch
        self.total_steps = spec.trainer.max_steps or (spec.trainer.max_epochs or 1) * batches.steps_per_epoch
        self.optimizer_name = sharding.optimizer_name
        self.moved = False
        self.adapter: dict[str, Tensor] = {}

    def named_trainables(self) -> list[tuple[str, Any]]:
        return [(name, one) for name, one in self.model.named_parameters() if one.requires_grad]

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.spec.optim, step, self.total_steps)

    def step(self, step: int) -> StepOutcome:
        self.model.train()
        seed_step(self.spec.trainer.seed, step, self.group)
        micro_batches = self.batches.train(step)
        weight = self.batches.weight(step)
        total = self.sharding.accumulate(micro_batches, weight)
        rate = self.learning_rate(step)
        norm = self.sharding.update(rate)
        self.moved = self.moved or (rate > 0 and 0 < norm < float("inf"))
        tokens = sum(batch.real_tokens for batch in micro_batches)
        counts = torch.tensor([float(tokens), float(self.stop.requested)], dtype=total.dtype, device=total.device)
        sums = torch.cat([total[None], counts])
        dist.all_reduce(sums)
        with heartbeat.waiting():
            loss, real, stops = sums.tolist()
        return StepOutcome(loss / max(1, weight), norm, real, stops > 0)

    def validate(self, step: int) -> Validation:
        """Mean loss over every label."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        for micro_batches in self.batches.validation():
            for batch in micro_batches:
                heartbeat.beat()
                sums[0] += self.sharding.loss(batch).double()
                sums[1] += len(batch.labels)
        self.model.train()
        dist.all_reduce(sums)
        with heartbeat.waiting():
            total, weight = map(float, sums.tolist())
        return Validation(total / weight) if weight else Validation(None)

    def shards(self, *, loading: bool = False) -> list[TensorShard]:
        found = self.sharding.shards(loading=loading)
        if self.spec.method.method != "full":
            self.adapter = {} if loading else self.sharding.trained()
            return found
        buffers = persistent_buffers(self.model.base[0])
        return [*found, *(whole(name, one, writes=self.group.rank == 0) for name, one in buffers)]

    def state(self) -> dict[str, Any]:
        return self.sharding.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.sharding.loaded()
        self.sharding.restore(state)
        rates = (self.learning_rate(step) for step in range(int(state["step"])))
        self.moved = state["optimizer"]["updates"] > 0 and any(rate > 0 for rate in rates)


class FineTunedCard:
    """What stands beside the tensors of a checkpoint: the model's configuration and tokenizer; of an adapter PEFT's
    files; and what it was made from. Written by rank 0."""

    def __init__(self, found: base_models.Started, spec: FineTuneStageSpec, steps: FineTuningSteps) -> None:
        self.found, self.spec, self.steps = found, spec, steps

    def write(self, folder: Path) -> None:
        found, method = self.found, self.spec.method.method
        found.write_configuration(folder)
        if found.adapter is not None:
            tensors = adapters.peft_tensors(self.steps.adapter, found.adapter.virtual_tokens)
            adapters.write(folder, found.adapter.config, tensors, trained=self.steps.moved)
        card = {
            "method": method,
            "base": str(found.folder),
            "base_digest": found.digest,
            "precision": self.spec.trainer.precision,
            "quantization": self.spec.huggingface.quantization,
            "template": self.spec.data.template,
            "system": self.spec.data.system,
        }
        write_json(CheckpointFolder(folder).fine_tuned, card)
