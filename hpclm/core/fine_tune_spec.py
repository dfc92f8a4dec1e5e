"""The spec of a stage of engine hf: a Hugging Face model fine-tuned or asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import (
    SPEC_VERSION,
    BatchSpec,
    CheckpointSpec,
    GenerationSpec,
    NodeNeeds,
    OptimSpec,
    RecoverySpec,
    TrackerOptions,
    TrainerSpec,
)

Method = Literal["full", "lora", "p-tuning", "prompt-tuning"]
Strategy = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]
Quantization = Literal["none", "nf4"]
RowFormat = Literal["auto", "alpaca", "messages", "prompt-completion"]
PromptTemplate = Literal["chat", "stanford", "axolotl", "llama-factory", "plain"]


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), as PEFT's LoraConfig has them.

    Attributes:
        targets: endings of module names; empty: PEFT's choice for the architecture; all-linear: every linear layer but
            the output's.
        modules_to_save: modules trained whole beside the adapters.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)
    modules_to_save: list[str] = field(default_factory=list)
    rslora: bool = False
    dora: bool = False


@dataclass(frozen=True)
class VirtualTokensSpec:
    """PEFT's prompt encoder (p-tuning) or table (prompt-tuning)."""

    count: int = 20
    encoder: Literal["mlp", "lstm"] = "mlp"
    encoder_hidden: int | None = None
    encoder_layers: int = 2
    encoder_dropout: float = 0.0
    init_text: str | None = None


@dataclass(frozen=True)
class MethodSpec:
    """What is trained."""

    method: Method = "full"
    lora: LoraSpec = field(default_factory=LoraSpec)
    virtual_tokens: VirtualTokensSpec = field(default_factory=VirtualTokensSpec)


@dataclass(frozen=True)
class ShardingSpec:
    """How weights, gradients and optimizer state are divided over the ranks.

    Attributes:
        group_size: ranks that share one copy (hybrid sharding); None: all. fsdp.
        offload: what is kept in host memory.
        nvme: folder on a node's local disk for what is offloaded (ZeRO-Infinity).
        checkpointing: the layers' activations are computed again in the backward pass.
        deepspeed: the user's DeepSpeed configuration, completed.
    """

    strategy: Strategy = "ddp"
    group_size: int | None = None
    offload: Literal["none", "optimizer", "all"] = "none"
    nvme: str | None = None
    checkpointing: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InstructionData:
    """Rows of instructions and answers.

    Attributes:
        row_text: for rows of no format: their text with `{fields}`, the answer's at the end.
        columns: the rows' names for the format's, where they differ; `roles` likewise for names of roles.
        metrics: scores of answers (names of `hpclm.metrics`) besides those that are always reported.
        learn: which tokens have a loss: all answers, the last one, or everything.
        too_long: what happens to rows of more than max_seq_length tokens.
        packing: rows are put together, first fit, into samples of up to max_seq_length tokens.
        cache: folder of the tokenised rows, for many runs; None: the stage's own.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    format: RowFormat = "auto"
    template: PromptTemplate = "chat"
    chat_template: str | None = None
    system: str | None = None
    row_text: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    learn: Literal["answers", "last-answer", "everything"] = "answers"
    max_seq_length: int = 1024
    too_long: Literal["cut", "leave-out", "refuse"] = "cut"
    packing: bool = False
    cache: str | None = None


@dataclass(frozen=True)
class HarnessSpec:
    """Tasks of lm-evaluation-harness.

    Attributes:
        include_path: folder with YAML files of tasks of one's own.
        few_shot: examples in front of each question; None: as the task has it.
        limit: questions of each task; None: all.
    """

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None
    few_shot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    chat_template: bool = False


@dataclass(frozen=True)
class HuggingFaceSpec:
    """How transformers loads and runs the model.

    Attributes:
        attention: `documents` is hpclm's own, which needs no mask and no padding; the others are transformers'.
        remote_code: run the Python files beside the model.
        quantization: of the frozen linear layers.
    """

    attention: Literal["documents", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "documents"
    remote_code: bool = False
    quantization: Quantization = "none"


@dataclass(frozen=True)
class FineTuneStageSpec:
    """One stage of engine hf.

    Attributes:
        base: folder of a Hugging Face model, or another stage's checkpoints.
    """

    run: str
    stage: str
    stage_dir: str
    task: str
    device: Literal["cpu", "gpu"]
    base: str
    parallel: ParallelSpec
    batch: BatchSpec
    trainer: TrainerSpec
    optim: OptimSpec
    checkpoint: CheckpointSpec
    data: InstructionData
    method: MethodSpec = field(default_factory=MethodSpec)
    sharding: ShardingSpec = field(default_factory=ShardingSpec)
    huggingface: HuggingFaceSpec = field(default_factory=HuggingFaceSpec)
    generation: GenerationSpec | None = None
    harness: HarnessSpec | None = None
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    needs: NodeNeeds = field(default_factory=NodeNeeds)
    tracking: TrackerOptions = field(default_factory=dict)
    engine: str = "hf"
    runner: str = "hpclm.engines.hf.ranks.stage_runner:run"
    spec_version: int = SPEC_VERSION
