"""The recipe's sections of engine hf."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from hpclm.core.fine_tune_spec import Method, PromptTemplate, Quantization, RowFormat, Strategy
from hpclm.data.template_text import is_row_text
from hpclm.recipe.schema.base import Count, Fraction, Line, Name, PathText, Prose, Section, described, fault
from hpclm.recipe.schema.training_sections import Metric


class Lora(Section):
    """Low-rank adapters (LoRA), in PEFT's terms."""

    rank: Annotated[int, Field(ge=1, le=10**4)] = Field(default=8, description="of the two factors (PEFT: r)")
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=16.0, description="the update is scaled by alpha / rank (rslora: by alpha / √rank)"
    )
    dropout: Fraction = Field(default=0.0, description="of the adapters' input")
    targets: tuple[Line, ...] = Field(
        default=(), description="endings of module names, or [all-linear]; default: PEFT's for the architecture"
    )
    modules_to_save: tuple[Line, ...] = Field(
        default=(), description="modules trained whole beside the adapters, as embed_tokens and lm_head"
    )
    rslora: bool = Field(default=False, description="rank-stabilised scaling (arXiv:2312.03732)")
    dora: bool = Field(default=False, description="weight-decomposed LoRA (arXiv:2402.09353)")


class VirtualTokens(Section):
    """The virtual tokens of p-tuning and prompt-tuning, which stand before every row."""

    count: Annotated[int, Field(ge=1, le=10**5)] = Field(default=20, description="how many")
    encoder: Literal["mlp", "lstm"] = Field(default="mlp", description="p-tuning: what computes them")
    encoder_hidden: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        default=None, description="p-tuning: width inside the encoder; default the model's"
    )
    encoder_layers: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="of an lstm encoder")
    encoder_dropout: Fraction = Field(default=0.0, description="of an lstm encoder")
    init_text: Prose | None = Field(
        default=None, description="prompt-tuning: text whose embeddings they begin with; null: words drawn at random"
    )


class FineTune(Section):
    """What is trained."""

    method: Method = Field(
        default="full", description="full: every weight; lora, p-tuning and prompt-tuning: a frozen model's adapter"
    )
    lora: Lora = Field(default=Lora(), description="of method lora")
    virtual_tokens: VirtualTokens = Field(default=VirtualTokens(), description="of p-tuning and prompt-tuning")


class Sharding(Section):
    """How weights, gradients and optimizer state are divided over the data-parallel ranks."""

    strategy: Strategy = Field(
        default="ddp",
        description="ddp: every rank has all; fsdp: weights, gradients and state are divided (PyTorch's FSDP2); zero1, "
        "zero2, zero3: DeepSpeed's stages divide the state, the gradients too, the weights too",
    )
    group_size: Count | None = Field(
        default=None, description="fsdp: ranks that share one copy, usually a node's (hybrid); null: all"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        default="none", description="to host memory: optimizer (zero1 to zero3), or all (fsdp, zero3)"
    )
    nvme: PathText | None = Field(
        default=None, description="zero3: folder on each node's local disk for what is offloaded (ZeRO-Infinity)"
    )
    checkpointing: bool = Field(
        default=False, description="compute the layers' activations again in the backward pass: less memory, more time"
    )
    deepspeed: PathText | None = Field(
        default=None, description="zero1 to zero3: your DeepSpeed configuration (JSON), whose auto values are filled in"
    )


def _mapping(value: object) -> Any:
    if not isinstance(value, dict):
        raise fault(f"must be a mapping of names, not {described(value)}; write name: name")
    return value


_Names = Annotated[
    dict[Line, Line],
    BeforeValidator(_mapping),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]


class Instructions(Section):
    """Rows of instructions and answers: JSONL, JSON or parquet."""

    train: tuple[PathText, ...] = Field(default=(), description="rows to train on")
    validation: tuple[PathText, ...] = Field(default=(), description="rows for val_loss")
    test: tuple[PathText, ...] = Field(default=(), description="evaluate: rows to answer; predictions keep their order")
    format: RowFormat = Field(
        default="auto",
        description="alpaca (instruction, input, output), messages (OpenAI's, or sharegpt's conversations), "
        "prompt-completion; auto: by each row's keys",
    )
    template: PromptTemplate = Field(
        default="chat",
        description="chat: the tokenizer's chat template; stanford: Alpaca's own prompt; axolotl: the same and a line "
        "break after 'Response:'; llama-factory: its alpaca template; plain: the row's text alone",
    )
    chat_template: PathText | None = Field(
        default=None, description="chat: a Jinja file instead of the tokenizer's own"
    )
    system: Prose | None = Field(default=None, description="system text of rows that have none")
    row_text: Prose | None = Field(
        default=None,
        description="rows of any other keys: their text with {fields}, the answer's last, as "
        "'{sentence} sentiment: {label}'; NeMo's markers of virtual tokens are left out",
    )
    columns: _Names = Field(
        default={}, description="the rows' names for the format's keys: {instruction: question, output: answer}"
    )
    roles: _Names = Field(default={}, description="messages: the rows' names for user, assistant, system and tool")
    metrics: tuple[Metric, ...] = Field(default=(), description="evaluate: scores of the answers, besides exact_match")
    learn: Literal["answers", "last-answer", "everything"] = Field(
        default="answers", description="tokens with a loss: every answer, the last one, or all tokens"
    )
    max_seq_length: Annotated[int, Field(ge=2, le=10**7)] = Field(default=1024, description="tokens of a sample")
    too_long: Literal["cut", "leave-out", "refuse"] = Field(
        default="cut", description="rows of more tokens; cut: the end is left out, and rows that lose their answer too"
    )
    packing: bool = Field(
        default=False,
        description="fill samples of max_seq_length with rows, first fit; each row sees itself alone",
    )
    stage: Name | None = Field(
        default=None, description="fine-tune: earlier prepare-rows stage that has tokenised these rows"
    )
    cache: PathText | None = Field(
        default=None, description="folder of the tokenised rows, for many runs; null: the run's own"
    )

    @model_validator(mode="after")
    def _one_template(self) -> Instructions:
        if self.chat_template is not None and self.template != "chat":
            raise fault(f"chat_template goes with template: chat, not {self.template}; leave one out")
        if self.row_text is not None:
            if not is_row_text(self.row_text):
                raise fault("row_text must end with the answer's field and have another before it; write {name}")
            if self.columns or self.format != "auto":
                raise fault("row_text names the rows' keys itself; leave columns and format out")
        for name in self.roles.values():
            if list(self.roles.values()).count(name) > 1:
                raise fault(f"roles gives the name {name} to two roles; give each role its own")
        return self


class Harness(Section):
    """Tasks of EleutherAI's lm-evaluation-harness (the package lm-eval), for an evaluate stage of engine hf."""

    tasks: tuple[Line, ...] = Field(default=(), description="by name, as arc_easy; their data must be on the node")
    include_path: PathText | None = Field(default=None, description="folder with YAML files of your own tasks")
    few_shot: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None, description="examples in front of each question; null: as the task has it"
    )
    limit: Count | None = Field(default=None, description="questions of each task; null: all")
    batch_size: Count = Field(default=8, description="questions at once on each rank")
    chat_template: bool = Field(default=False, description="ask in the tokenizer's chat template")


class HuggingFace(Section):
    """How transformers loads and runs the model."""

    attention: Literal["documents", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        default="documents",
        description="documents: hpclm's own, over rows without padding; the others are transformers' implementations",
    )
    remote_code: bool = Field(
        default=False, description="run the Python files beside the model, which can do anything that you can"
    )
    quantization: Quantization = Field(
        default="none",
        description="nf4: the frozen linear layers in 4 bits by bitsandbytes (QLoRA), for method lora and for answers",
    )
