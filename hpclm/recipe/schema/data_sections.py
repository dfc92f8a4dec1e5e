"""What a stage reads: text to pre-train on, or JSONL rows and the templates that turn them into prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from hpclm.recipe.schema.base import (
    Count,
    Fraction,
    Line,
    Name,
    NotNegative,
    PathText,
    Prose,
    Section,
    fault,
    shown,
)


class Text(Section):
    """Text to pre-train on."""

    paths: tuple[PathText, ...] = Field(min_length=1, description="files and folders (searched to the bottom)")
    pattern: Line = Field(default="*", description="file names taken from folders, as in *.txt")
    document: Literal["file", "line", "paragraph"] = Field(
        default="file", description="what one document is; paragraphs are parted by blank lines"
    )
    seq_length: Annotated[int, Field(ge=2, le=10**7)] = Field(default=1024, description="tokens a sample")
    validation_fraction: Fraction = Field(default=0.02, description="documents kept for validation")
    max_mib: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="MiB read at most; null: all"
    )

    @field_validator("pattern")
    @classmethod
    def _of_names(cls, pattern: str) -> str:
        if "/" in pattern:
            raise fault(f"{shown(pattern)} holds '/'; a pattern is for file names, folders go to text.paths")
        return pattern


class Data(Section):
    """JSONL files: one object a line, with `taskname` and the fields of that task's template."""

    train: tuple[PathText, ...] = Field(default=(), description="rows to learn from")
    validation: tuple[PathText, ...] = Field(default=(), description="rows for val_loss")
    test: tuple[PathText, ...] = Field(default=(), description="rows to answer; predictions keep their order")
    max_seq_length: Annotated[int, Field(ge=2, le=10**7)] | None = Field(
        default=None,
        description="tokens of an example, virtual ones included; default 1024, the model's positions at most",
    )
    min_seq_length: Count = Field(default=1, description="training rows of fewer tokens are left out")
    semantics: Literal["strict", "nemo"] = Field(
        default="strict", description="nemo: token ids, masks and dropped rows as NeMo makes them, its faults included"
    )
    add_bos: bool = Field(default=False, description="start each example with the BOS token")
    add_eos: bool = Field(default=True, description="end each training example with the EOS token")


class TaskTemplate(Section):
    """One of a list, NeMo's task template: how a row becomes a prompt with virtual tokens in it."""

    taskname: Name = Field(description="rows whose taskname is this use the template")
    prompt_template: Prose = Field(
        description="text with {fields} of the row and <|VIRTUAL_PROMPT_0|>, <|VIRTUAL_PROMPT_1|>, … markers"
    )
    total_virtual_tokens: Annotated[int, Field(ge=1, le=10**5)] = Field(description="trained tokens of the task")
    virtual_token_splits: tuple[Count, ...] | None = Field(
        default=None, description="virtual tokens at each marker; default all at the only one"
    )
    truncate_field: Line | None = Field(
        default=None, description="field cut when an example is too long; null: training skips the row"
    )
    answer_only_loss: bool = Field(default=True, description="learn from the answer's tokens alone")
    answer_field: Line | None = Field(default="answer", description="field that holds the answer")
    prompt_init: Literal["random", "text"] = Field(
        default="random", description="start of the virtual tokens; prompt-tuning"
    )
    prompt_init_text: Prose | None = Field(
        default=None, description="text whose embeddings are copied; prompt_init: text"
    )


class Prompt(Section):
    """The p-tuning encoder (prompt-tuning has none)."""

    encoder: Literal["tpmlp", "mlp", "lstm", "biglstm", "embedding"] = Field(
        default="tpmlp", description="what makes the virtual tokens"
    )
    encoder_hidden: Annotated[int, Field(ge=1, le=10**6)] = Field(default=2048, description="width inside the encoder")
    encoder_layers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="of mlp (2 or more), lstm and biglstm"
    )
    encoder_dropout: Fraction = Field(default=0.0, description="between the layers of lstm and biglstm")
    encoder_init_std: Annotated[float, Field(gt=0, le=10)] = Field(default=0.023, description="of tpmlp's weights")


class Generation(Section):
    """How answers are made."""

    max_new_tokens: Annotated[int, Field(ge=1, le=10**6)] = Field(default=30, description="tokens of an answer at most")
    min_new_tokens: NotNegative = Field(default=0, description="tokens before an answer may end")
    greedy: bool = Field(default=True, description="the likeliest token each time; false: draw from the distribution")
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="flattens (>1) or sharpens (<1)"
    )
    top_k: Annotated[int, Field(ge=0, le=10**6)] = Field(default=0, description="draw from the k likeliest; 0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="draw from the likeliest p of the mass")
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="over 1: tokens of prompt and answer become less likely"
    )
    end_strings: tuple[Prose, ...] = Field(
        default=(), max_length=16, description="an answer ends before the first of these"
    )
    add_bos: bool | None = Field(default=None, description="start prompts with the BOS token; null: as in training")
    batch_size: Annotated[int, Field(ge=1, le=10**5)] = Field(
        default=16, description="prompts answered at once on a rank"
    )
