"""The contract between the login node and the ranks: one `StageSpec` per stage, written as JSON.

The login side fills it from a recipe and its plan; the worker reads it and nothing else, so the worker needs neither
YAML nor pydantic in the image. Every path in it is absolute. Units are in the names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hpclm.core.batch_schedule import BatchSchedule
from hpclm.core.data_spec import IndexedData as IndexedData
from hpclm.core.data_spec import PromptData as PromptData
from hpclm.core.data_spec import Semantics as Semantics
from hpclm.core.data_spec import TaskTemplate as TaskTemplate
from hpclm.core.data_spec import TextData as TextData
from hpclm.core.parallel_spec import ParallelSpec, RecomputeSpec

SPEC_VERSION = 2

# By tracker; earlier versions had the names alone.
TrackerOptions = dict[str, dict[str, Any]] | list[str]


Normalization = Literal["layernorm", "layernorm1p", "rmsnorm"]
Activation = Literal["gelu", "gelu_exact", "squared_relu", "swiglu", "geglu", "geglu_exact", "reglu"]
GATED = ("swiglu", "geglu", "geglu_exact", "reglu")


@dataclass(frozen=True)
class ModelSpec:
    """A GPT architecture, every default resolved.

    Attributes:
        padded_vocab_size: rows of the embedding table, `vocab_size` rounded up (`planning.rules.padded_vocab_size`).
        position_embedding: `learned` (GPT-2) or `rope`.
        rotary_percent: share of a head's width that is rotated (Black et al. 2022, arXiv:2204.06745, section 2.1.1).
        rotary_interpolation: positions are divided by it before they are rotated (Chen et al. 2023, arXiv:2306.15595).
        rotary_scaling_factor: Llama 3.1's scaling of low frequencies, for contexts of more than 8,192 tokens.
        add_qkv_bias: biases of queries, keys and values where the linear layers have none (Qwen2).
        qk_norm: queries and keys of each head are normalised before they are rotated (Qwen3).
        normalization: `layernorm1p` is a layer norm whose scale is stored less one (NeMo's LayerNorm1P).
        activation: of the MLP. `gelu` and `geglu` are the tanh form, `_exact` the error function; in the `glu`s the
            first half of the layer's rows is the gate (Shazeer 2020, arXiv:2002.05202).
        num_moe_experts: MLPs of width `ffn_hidden_size` in each layer, of which a router chooses `moe_router_topk` for
            each token (mixture of experts, Shazeer et al. 2017, arXiv:1701.06538); None: one MLP, and no router.
        moe_aux_loss_coeff: of the loss that keeps the experts' shares of the tokens alike (Fedus et al. 2021,
            arXiv:2101.03961, section 2.2).
        moe_z_loss_coeff: of the loss that keeps the router's logits small (Zoph et al. 2022, arXiv:2202.08906).
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    max_position_embeddings: int
    vocab_size: int
    padded_vocab_size: int
    position_embedding: Literal["learned", "rope"] = "learned"
    rotary_base: float = 10000.0
    normalization: Normalization = "layernorm"
    layernorm_epsilon: float = 1e-5
    activation: Activation = "gelu"
    add_bias_linear: bool = True
    tie_embeddings: bool = True
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    rotary_percent: float = 1.0
    rotary_interpolation: float = 1.0
    rotary_scaling_factor: float | None = None
    add_qkv_bias: bool = False
    qk_norm: bool = False
    num_moe_experts: int | None = None
    moe_router_topk: int = 2
    moe_aux_loss_coeff: float = 0.01
    moe_z_loss_coeff: float = 0.0

    @property
    def gated(self) -> bool:
        """Whether the MLP's first layer has a gate beside its values."""
        return self.activation in GATED


@dataclass(frozen=True)
class TokenizerSpec:
    """Where the tokenizer comes from.

    `train`: a byte-level BPE of `vocab_size` entries trained by the pretrain stage on its text.
    `bpe`: GPT-2 style `vocab_file` and `merges_file`. `json`: a `tokenizer.json` in `tokenizer_file`.
    `base`: the one stored next to the base checkpoint. A `tokenizer_file` called `….model` is a SentencePiece model.

    Attributes:
        sentencepiece: whether it is one, which needs the package of that name.
    """

    kind: Literal["train", "bpe", "json", "base"]
    vocab_size: int = 0
    vocab_file: str | None = None
    merges_file: str | None = None
    tokenizer_file: str | None = None
    sentencepiece: bool = False


@dataclass(frozen=True)
class EarlyStoppingSpec:
    """Early stopping: training ends after `patience` validations in a row whose val_loss
    is not `min_delta` below the best."""

    patience: int = 10
    min_delta: float = 0.001


@dataclass(frozen=True)
class RampupSpec:
    """The global batch grows from `start` by `increment` over the first `samples`."""

    start: int
    increment: int
    samples: int


@dataclass(frozen=True)
class BatchSpec:
    """Samples per step over all ranks, samples per forward pass, and forward passes per
    step on one data-parallel rank (once the batch has grown)."""

    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    rampup: RampupSpec | None = None

    @property
    def schedule(self) -> BatchSchedule:
        """The global batch at each step."""
        return BatchSchedule(self.global_batch_size, self.rampup)


@dataclass(frozen=True)
class TrainerSpec:
    """Training length and precision. One of `max_steps` and `max_epochs` is set (for evaluate neither).

    Attributes:
        train_samples: what `max_steps` was computed from, if it was; the steps of `OptimSpec` are then samples, and the
            rate follows the samples that were read.
        val_check_interval: steps between validations when an int; a fraction of an epoch when a float in (0, 1].
        val_batches: global batches a validation reads; None: the whole validation set.
        val_metrics: scores of answers generated for the validation rows (names of `hpclm.metrics`).
        val_metric_rows: rows answered at each validation; None: all.
        deterministic: on GPUs only kernels that give the same bits each time.
    """

    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    max_steps: int | None = None
    max_epochs: int | None = None
    train_samples: int | None = None
    val_check_interval: int | float = 1.0
    val_batches: int | None = None
    val_metrics: list[str] = field(default_factory=list)
    val_metric_rows: int | None = None
    early_stopping: EarlyStoppingSpec | None = None
    recompute: RecomputeSpec | None = None
    gradient_clip_norm: float = 1.0
    log_interval_steps: int = 1
    seed: int = 1234
    deterministic: bool = False


OptimizerName = Literal["adamw", "adam", "lion", "lamb", "adafactor", "sgd", "adamw-8bit"]
ScheduleName = Literal["cosine", "linear", "constant", "inverse-square-root", "wsd"]
Anneal = Literal["linear", "cosine", "exponential", "minus_sqrt"]


@dataclass(frozen=True)
class OptimSpec:
    """The optimizer and its schedule: linear warm-up, then `schedule` down to `min_lr`, kept for the constant steps.

    Attributes:
        name: engine megatron has adamw alone.
        beta1: of sgd the momentum.
        warmup_ratio: share of all steps instead of `warmup_steps`; `constant_ratio` likewise.
        from_zero: the first step has a rate of 0, as in Megatron-LM.
        anneal_steps: of `wsd`, the steps before the constant ones in which the rate falls, and how.
        offload: masters and moments are in host memory, where the update is made (engine megatron).
    """

    lr: float
    min_lr: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    constant_steps: int = 0
    warmup_ratio: float | None = None
    constant_ratio: float | None = None
    from_zero: bool = False
    anneal_steps: int = 0
    anneal: Anneal = "exponential"
    name: OptimizerName = "adamw"
    offload: bool = False

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of so many; NeMo's int(ratio · steps)."""
        return self.warmup_steps if self.warmup_ratio is None else int(self.warmup_ratio * total_steps)

    def constant(self, total_steps: int) -> int:
        """Steps at `min_lr` at the end of a run of so many."""
        return self.constant_steps if self.constant_ratio is None else int(self.constant_ratio * total_steps)


@dataclass(frozen=True)
class CheckpointSpec:
    """Steps between checkpoints (None: at each validation and at the end), how many of each kind are kept, and whether
    training goes on while they are written."""

    save_interval_steps: int | None = None
    keep_last: int = 2
    keep_best: int | None = 2
    asynchronous: bool = False


@dataclass(frozen=True)
class PromptSpec:
    """The trainable part of prompt learning; the encoder fields count for p-tuning only."""

    encoder: Literal["tpmlp", "mlp", "lstm", "biglstm", "embedding"] = "tpmlp"
    encoder_hidden: int = 2048
    encoder_layers: int = 2
    encoder_dropout: float = 0.0
    encoder_init_std: float = 0.023


@dataclass(frozen=True)
class GenerationSpec:
    """How answers are generated. `greedy` ignores temperature, top_k and top_p.

    Attributes:
        min_new_tokens: the end token is not chosen before this many tokens.
        repetition_penalty: CTRL's (arXiv:1909.05858, section 4.1), over prompt and answer.
        end_strings: an answer ends before the first of these.
        add_bos: whether prompts start with BOS; None: as in training.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 0
    greedy: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    end_strings: list[str] = field(default_factory=list)
    add_bos: bool | None = None
    batch_size: int = 16
    seed: int = 1234


@dataclass(frozen=True)
class RecoverySpec:
    """What is done after failures (`recovery.restart_decision`). `stall_timeout_s` None: hangs are not detected."""

    max_restarts: int = 10
    max_without_progress: int = 3
    stall_timeout_s: int | None = 1200
    max_bad_nodes: int = 4
    preflight: bool = True


@dataclass(frozen=True)
class NodeNeeds:
    """What a node must have for the stage, found once, by the plan, and checked by doctor and the preflight.

    Attributes:
        packages: packages that the ranks' interpreter must have.
        memory_bytes: estimate of the most loaded rank; None: unknown.
        precision: of the arithmetic; None: unknown.
        inputs: files and folders outside the run that a rank opens.
        local_disk: folder on the node's own disk for what is offloaded; local_bytes: how much.
    """

    packages: list[str] = field(default_factory=list)
    memory_bytes: int | None = None
    precision: str | None = None
    inputs: list[str] = field(default_factory=list)
    local_disk: str | None = None
    local_bytes: int = 0


@dataclass(frozen=True)
class Backends:
    """Which implementation of each exchangeable part the ranks use; recorded in the result.

    `sdpa` is torch's scaled_dot_product_attention, `torch` is torch's own norm and fused AdamW.
    """

    attention: str = "sdpa"
    norm: str = "torch"
    optimizer: str = "torch"


@dataclass(frozen=True)
class StageSpec:
    """One complete stage.

    Attributes:
        engine: whose ranks run it; `runner`: `module:function` that a rank calls.
        stage_dir: where the stage writes (see `core.layout.StagePaths`).
        base: directory of the frozen or initial model: another stage's `checkpoints` or a checkpoint directory.
        prompts: a prompt-learning stage's `checkpoints` (its best is taken), one checkpoint directory or an archive.
            For evaluate, None asks the model alone, virtual tokens left out; for prompt learning, the tasks it holds
            stay as they are and those of `templates` that it does not hold are trained next to them.
    """

    run: str
    stage: str
    stage_dir: str
    task: str
    device: Literal["cpu", "gpu"]
    model: ModelSpec
    tokenizer: TokenizerSpec
    parallel: ParallelSpec
    batch: BatchSpec
    trainer: TrainerSpec
    optim: OptimSpec
    checkpoint: CheckpointSpec
    text: TextData | None = None
    indexed: IndexedData | None = None
    data: PromptData | None = None
    templates: list[TaskTemplate] = field(default_factory=list)
    prompt: PromptSpec | None = None
    generation: GenerationSpec | None = None
    base: str | None = None
    prompts: str | None = None
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    backends: Backends = field(default_factory=Backends)
    needs: NodeNeeds = field(default_factory=NodeNeeds)
    tracking: TrackerOptions = field(default_factory=dict)
    engine: str = "megatron"
    runner: str = "hpclm.engines.megatron.ranks.stage_runner:run"
    spec_version: int = SPEC_VERSION

    @property
    def pretraining_length(self) -> int | None:
        """Tokens of a sample of pre-training; None for other tasks."""
        source = self.text or self.indexed
        return None if source is None else source.seq_length


@dataclass(frozen=True)
class ProgramSpec:
    """Another program (see `engines.command.section.Program`). `argv` still has its placeholders.

    `files`: text of files to write into the stage's folder before it starts, by name.
    """

    argv: list[str]
    launcher: Literal["rank", "torchrun"] = "rank"
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    outputs: list[str] = field(default_factory=list)
    progress: str | None = None
    retry_exit_codes: list[int] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProgramStageSpec:
    """A stage that runs a user's program, with hpclm's topology, rendezvous, recovery and collection."""

    run: str
    stage: str
    stage_dir: str
    device: Literal["cpu", "gpu"]
    parallel: ParallelSpec
    program: ProgramSpec
    task: str = "program"
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    needs: NodeNeeds = field(default_factory=NodeNeeds)
    tracking: TrackerOptions = field(default_factory=dict)
    engine: str = "command"
    runner: str = "hpclm.engines.command.run:run"
    spec_version: int = SPEC_VERSION
