"""What a stage reads: text to pre-train on, or JSONL rows and the templates that turn them into prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from hpclm.core.spec import Semantics
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

    paths: tuple[PathText, ...] = Field(min_length=1, description="files and folders (searched recursively)")
    pattern: Line = Field(default="*", description="file names taken from folders, as in *.txt")
    document: Literal["file", "line", "paragraph"] = Field(
        default="file", description="what one document is; paragraphs are separated by blank lines"
    )
    seq_length: Annotated[int, Field(ge=2, le=10**7)] = Field(default=1024, description="tokens per sample")
    validation_fraction: Fraction = Field(default=0.02, description="documents kept for validation")
    max_mib: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="MiB read at most; null: all"
    )

    @field_validator("pattern")
    @classmethod
    def _of_names(cls, pattern: str) -> str:
        if "/" in pattern:
            raise fault(f"{shown(pattern)} contains '/'; a pattern is for file names, folders go to text.paths")
        return pattern


Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1e9)]


def _shares(value: object) -> tuple[float, ...]:
    """`969,30,1`, as Megatron-LM writes it, or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and 1 <= len(parts) <= 3:
        try:
            numbers = tuple(float(part) for part in parts if not isinstance(part, bool))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) == len(parts) and all(0 <= one < 1e9 for one in numbers):
            if numbers[0] > 0:
                return (*numbers, 0.0, 0.0)[:3]
            raise fault(f"leaves nothing to train on: {shown(str(value))}; the first share is training's: 969,30,1")
    raise fault(f"must be up to three shares, not {shown(str(value))}; write training, validation and test: 969,30,1")


class Indexed(Section):
    """Megatron's indexed data sets to pre-train on, as `hpclm data tokenize` writes them."""

    paths: tuple[PathText, ...] = Field(
        default=(), max_length=32_000, description="prefixes of .bin and .idx files; this or stage"
    )
    stage: Name | None = Field(default=None, description="earlier tokenize stage whose data sets are used")
    weights: tuple[Positive, ...] | None = Field(
        default=None, description="how much is taken of each path; null: every sample of all once"
    )
    validation: tuple[PathText, ...] = Field(
        default=(), max_length=32_000, description="prefixes for validation alone; then nothing is split"
    )
    validation_weights: tuple[Positive, ...] | None = Field(default=None, description="of these")
    split: Annotated[
        tuple[float, ...],
        BeforeValidator(_shares),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "number"}}]}),
    ] = Field(
        default=(969.0, 30.0, 1.0),
        description="shares of each path's documents, in their order: training, validation, test (not used)",
    )
    seq_length: Annotated[int, Field(ge=2, le=10**7)] = Field(default=1024, description="tokens per sample")
    cache: PathText | None = Field(
        default=None, description="folder of the samples' indices, for many runs; null: the run's own"
    )
    reset_positions: bool = Field(default=False, description="positions begin anew after each end token")
    reset_attention: bool = Field(default=False, description="tokens see their own document alone")
    mask_end_loss: bool = Field(default=False, description="no loss where the input is an end token")

    @model_validator(mode="after")
    def _one_source(self) -> Indexed:
        if bool(self.paths) == (self.stage is not None):
            raise fault("needs paths, or stage (an earlier tokenize stage), and not both")
        if self.stage is not None and self.weights is not None:
            raise fault("weights are for paths; leave them out with stage")
        for name, weights, paths in (
            ("weights", self.weights, self.paths),
            ("validation_weights", self.validation_weights, self.validation),
        ):
            if weights is not None and len(weights) != len(paths):
                raise fault(f"{name} has {len(weights)} numbers for {len(paths)} paths; give one for each")
        return self


class Data(Section):
    """JSONL files: one object per line, with `taskname` and the fields of that task's template."""

    train: tuple[PathText, ...] = Field(default=(), description="rows to train on")
    validation: tuple[PathText, ...] = Field(default=(), description="rows for val_loss")
    test: tuple[PathText, ...] = Field(default=(), description="rows to answer; predictions keep their order")
    max_seq_length: Annotated[int, Field(ge=2, le=10**7)] | None = Field(
        default=None,
        description="tokens of an example, virtual ones included; null: as many as the model has positions",
    )
    min_seq_length: Count = Field(default=1, description="training rows of fewer tokens are left out")
    semantics: Semantics = Field(
        default="strict",
        description="nemo: token ids, masks and dropped rows as NeMo makes them, including its bugs; nemo-1.21: as "
        "up to r1.21, without the white space beside virtual tokens",
    )
    add_bos: bool = Field(default=False, description="start each example with the BOS token")
    add_eos: bool = Field(default=True, description="end each training example with the EOS token")


class TaskTemplate(Section):
    """One of a list, NeMo's task template: how a row becomes a prompt with virtual tokens in it."""

    taskname: Line = Field(description="rows whose taskname is this use the template")
    prompt_template: Prose = Field(
        description="text with {fields} of the row and <|VIRTUAL_PROMPT_0|>, <|VIRTUAL_PROMPT_1|>, … markers"
    )
    total_virtual_tokens: Annotated[int, Field(ge=1, le=10**5)] = Field(description="trained tokens of the task")
    virtual_token_splits: tuple[Count, ...] | None = Field(
        default=None, description="virtual tokens at each marker; default: all at the single marker"
    )
    truncate_field: Line | None = Field(
        default=None, description="field cut when an example is too long; null: training skips the row"
    )
    answer_only_loss: bool = Field(default=True, description="compute the loss on the answer's tokens only")
    answer_field: Line | None = Field(default="answer", description="field with the answer")
    prompt_init: Literal["random", "text"] = Field(
        default="random", description="initial values of the virtual tokens; prompt-tuning"
    )
    prompt_init_text: Prose | None = Field(
        default=None, description="text whose embeddings are copied; prompt_init: text"
    )


class Prompt(Section):
    """The p-tuning encoder (prompt-tuning has none)."""

    encoder: Literal["tpmlp", "mlp", "lstm", "biglstm", "embedding"] = Field(
        default="tpmlp", description="what computes the virtual tokens"
    )
    encoder_hidden: Annotated[int, Field(ge=1, le=10**6)] = Field(default=2048, description="width inside the encoder")
    encoder_layers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="layers of mlp (2 or more), lstm and biglstm"
    )
    encoder_dropout: Fraction = Field(default=0.0, description="between the layers of lstm and biglstm")
    encoder_init_std: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.023, description="standard deviation of tpmlp's new weights"
    )


class Generation(Section):
    """How answers are generated."""

    max_new_tokens: Annotated[int, Field(ge=1, le=10**6)] = Field(default=30, description="most tokens in an answer")
    min_new_tokens: NotNegative = Field(default=0, description="fewest tokens in an answer")
    greedy: bool = Field(default=True, description="always the most likely token; false: sample")
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="flattens (>1) or sharpens (<1)"
    )
    top_k: Annotated[int, Field(ge=0, le=10**6)] = Field(
        default=0, description="sample from the k most likely tokens; 0: all"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="sample from the most likely tokens of total probability p"
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="above 1: tokens of prompt and answer become less likely"
    )
    end_strings: tuple[Prose, ...] = Field(
        default=(), max_length=16, description="an answer ends before the first of these"
    )
    add_bos: bool | None = Field(default=None, description="start prompts with the BOS token; null: as in training")
    batch_size: Annotated[int, Field(ge=1, le=10**5)] = Field(
        default=16, description="prompts answered at the same time on a rank"
    )
