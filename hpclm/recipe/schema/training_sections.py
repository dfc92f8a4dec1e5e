"""How a stage trains: batch, length and precision, optimizer, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from hpclm.core.parallel_spec import RecomputeModule
from hpclm.core.registries import METRICS
from hpclm.core.spec import Anneal, OptimizerName, ScheduleName
from hpclm.recipe.schema.base import Count, Fraction, NotNegative, Section, described, fault, registered


class Rampup(Section):
    """A global batch that grows over the first samples (Megatron-LM's --rampup-batch-size)."""

    start: Count = Field(description="samples of the first step")
    increment: Count = Field(description="how much the batch grows at a time")
    samples: Annotated[int, Field(ge=1, le=10**15)] = Field(description="samples until it has its full size")


class Batch(Section):
    """Samples per step over all ranks, and samples per forward pass."""

    global_size: Count = Field(alias="global", description="samples per step, over all ranks")
    micro_size: Count = Field(default=1, alias="micro", description="samples per forward pass on one rank")
    rampup: Rampup | None = Field(
        default=None, description="pretrain on indexed data, with train_samples; null: global from the first step on"
    )

    @model_validator(mode="after")
    def _grows_to_global(self) -> Batch:
        if self.rampup is None:
            return self
        start, increment = self.rampup.start, self.rampup.increment
        if start >= self.global_size:
            raise fault(f"rampup starts at {start}, and global is {self.global_size}; choose a smaller start, or none")
        if (self.global_size - start) % increment:
            raise fault(
                f"rampup does not reach global {self.global_size} from start {start} by {increment} at a time; choose "
                "an increment that divides their difference"
            )
        return self


Metric = registered(METRICS)


def _interval(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault("must be a number; write steps as a whole number, or a fraction of an epoch such as 1.0 or 0.25")
    if isinstance(value, int) and 1 <= value <= 10**9:
        return value
    if isinstance(value, float) and 0 < value <= 1:
        return value
    raise fault(
        f"{value!r} is out of range; choose a whole number of steps from 1, or a fraction of an epoch up to 1.0"
    )


class EarlyStopping(Section):
    """Ends training when val_loss stops improving."""

    patience: Annotated[int, Field(ge=1, le=10**6)] = Field(
        default=10, description="validations in a row without an improvement"
    )
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.001, description="a val_loss this much lower is an improvement"
    )


class Recompute(Section):
    """Activation checkpointing: saves memory, costs time (Megatron-LM's --recompute-…)."""

    granularity: Literal["selective", "full"] = Field(
        description="selective: modules are computed again; full: whole layers"
    )
    modules: tuple[RecomputeModule, ...] | None = Field(
        default=None, description="selective: which of each layer; default core_attn, which fused attention never keeps"
    )
    method: Literal["uniform", "block"] | None = Field(
        default=None, description="full: groups of num_layers, or only the first num_layers of a pipeline stage"
    )
    num_layers: Count | None = Field(default=None, description="full: see method; default 1")

    @model_validator(mode="after")
    def _whole(self) -> Recompute:
        if self.granularity == "selective" and (self.method is not None or self.num_layers is not None):
            raise fault("method and num_layers go with granularity: full; leave them out")
        if self.granularity == "full" and self.modules is not None:
            raise fault("modules go with granularity: selective; leave them out")
        if self.modules is not None and (not self.modules or len(set(self.modules)) < len(self.modules)):
            raise fault("modules names each once, and at least one; leave it out for core_attn")
        if self.granularity == "full" and self.method is None:
            raise fault("granularity: full needs a method; choose uniform or block")
        return self


class Trainer(Section):
    """Training length and precision. To train, give one of `max_steps`, `max_epochs` and `train_samples`."""

    max_steps: Count | None = Field(default=None, description="optimizer steps")
    train_samples: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        default=None, description="the length in samples instead, as in Megatron-LM"
    )
    max_epochs: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        default=None, description="passes over the training rows"
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        default="fp32", description="of weights and arithmetic (tf32: fp32 weights, faster products); cpu: fp32"
    )
    val_check_interval: Annotated[int | float, PlainValidator(_interval)] = Field(
        default=1.0, description="steps between validations (whole number), or a fraction of an epoch (1.0: each epoch)"
    )
    val_batches: Count | None = Field(default=None, description="global batches a validation reads; null: all")
    val_metrics: tuple[Metric, ...] = Field(  # type: ignore[valid-type]
        default=(), description="p-tuning and prompt-tuning: scores of answers generated for the validation rows"
    )
    val_metric_rows: Count | None = Field(default=None, description="validation rows used for val_metrics; null: all")
    early_stopping: EarlyStopping | None = Field(default=None, description="null: no early stopping")
    recompute: Recompute | None = Field(default=None, description="activation checkpointing; null: none")
    gradient_clip_norm: Annotated[float, Field(ge=0, le=1e6)] = Field(default=1.0, description="0: no clipping")
    log_interval_steps: Count = Field(default=1, description="steps between rows of metrics.jsonl")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=1234, description="of weights, data order and sampling")
    deterministic: bool = Field(
        default=False, description="bitwise equal repeats and resumes on GPUs too; slower (on cpu they always are)"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Trainer:
        lengths = [name for name in ("max_steps", "max_epochs", "train_samples") if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise fault(f"{' and '.join(lengths)} exclude each other; keep one")
        return self


Samples = Annotated[int, Field(ge=0, le=10**15)]


class Schedule(Section):
    """Learning rate over the steps: linear warm-up, then the curve down to `min_lr`, then constant."""

    name: ScheduleName = Field(
        default="cosine", description="the curve after the warm-up; wsd: constant, then down in anneal_steps"
    )
    warmup_steps: NotNegative = Field(default=0, description="steps from 0 to lr")
    warmup_ratio: Fraction | None = Field(default=None, description="the same as a share of all steps")
    constant_steps: NotNegative = Field(default=0, description="steps at min_lr at the end")
    constant_ratio: Fraction | None = Field(default=None, description="the same as a share of all steps")
    from_zero: bool = Field(default=False, description="the first step has a rate of 0, as in Megatron-LM")
    anneal_steps: NotNegative = Field(default=0, description="wsd: steps from lr to min_lr, before the constant ones")
    anneal: Anneal = Field(default="exponential", description="wsd: how the rate falls")
    warmup_samples: Samples = Field(default=0, description="with train_samples: the same in samples")
    constant_samples: Samples = Field(default=0, description="with train_samples: the same in samples")
    anneal_samples: Samples = Field(default=0, description="with train_samples: the same in samples")

    @property
    def in_steps(self) -> list[str]:
        """Keys that count steps and are not 0; `in_samples` likewise."""
        return [f"{name}_steps" for name in ("warmup", "constant", "anneal") if getattr(self, f"{name}_steps")]

    @property
    def in_samples(self) -> list[str]:
        return [f"{name}_samples" for name in ("warmup", "constant", "anneal") if getattr(self, f"{name}_samples")]

    @model_validator(mode="after")
    def _one_of_both(self) -> Schedule:
        for name in ("warmup", "constant"):
            given = [kind for kind in ("steps", "samples") if getattr(self, f"{name}_{kind}")]
            given += ["ratio"] if getattr(self, f"{name}_ratio") is not None else []
            if len(given) > 1:
                raise fault(f"{name}_{given[0]} and {name}_{given[1]} are both given; keep one")
        if (self.name == "wsd") != bool(self.anneal_steps or self.anneal_samples):
            raise fault("anneal_steps (or anneal_samples) belongs to name: wsd, which needs it; give both or neither")
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optim(Section):
    """The optimizer, and how its rate goes."""

    name: OptimizerName = Field(default="adamw", description="engine hf has all of them, the others adamw")
    lr: Annotated[float, Field(gt=0, le=10)] = Field(description="highest learning rate")
    min_lr: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="lowest; 0 for prompt learning with pipeline > 1"
    )
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(default=0.01, description="decoupled (AdamW)")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.98), description="decay of the two moments; sgd: the first is the momentum"
    )
    epsilon: Annotated[float, Field(gt=0, le=1)] = Field(default=1e-8, description="added to the denominator")
    offload: bool = Field(
        default=False,
        description="its state in host memory, where the update is made (pretrain by engine megatron; engine hf: "
        "sharding.offload)",
    )
    schedule: Schedule = Field(default=Schedule(), description="learning rate over the steps")


def _kept(value: object) -> int | Literal["all"]:
    if value == "all":
        return "all"
    if isinstance(value, bool) or not isinstance(value, int):
        raise fault(f"must be a whole number or all, not {described(value)}; choose 0 to 1000, or all")
    if not 0 <= value <= 1000:
        raise fault(f"{value} is out of range; choose 0 to 1000, or all")
    return value


_Kept = Annotated[
    int | Literal["all"],
    PlainValidator(_kept),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": 1000}, {"enum": ["all"]}]}),
]


class Checkpointing(Section):
    """When checkpoints are saved, and which are kept."""

    save_interval_steps: Count | None = Field(default=None, description="null: at each validation and at the end")
    keep_last: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="newest checkpoints kept")
    keep_best: _Kept = Field(default=2, description="checkpoints of lowest val_loss kept; all: every one")
    asynchronous: bool = Field(
        default=False,
        description="training goes on while a checkpoint is written, from a copy in host memory",
    )
