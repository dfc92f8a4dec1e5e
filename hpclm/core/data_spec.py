"""What a stage reads, as the ranks see it: a part of the stage's spec (`core.spec`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TextData:
    """Text to pre-train on: every file under `paths` that matches `pattern`, one document a file, a line, or
    a paragraph (separated by blank lines)."""

    paths: list[str]
    pattern: str = "*"
    document: Literal["file", "line", "paragraph"] = "file"
    seq_length: int = 1024
    validation_fraction: float = 0.02
    max_mib: float | None = None


@dataclass(frozen=True)
class IndexedData:
    """Megatron's indexed data sets to pre-train on.

    Attributes:
        paths: prefixes of .bin and .idx files; weights: how much is taken of each, None: every sample once.
        validation: data sets for validation alone; `split` is then not used.
        split: shares of each data set's sequences for training, validation and test.
        cache: folder of the indices; None: the stage's own.
        reset_positions, reset_attention: positions, and what is attended to, begin anew after each end token.
        mask_end_loss: no loss where the token is an end token.
    """

    paths: list[str]
    weights: list[float] | None = None
    validation: list[str] = field(default_factory=list)
    validation_weights: list[float] | None = None
    split: list[float] = field(default_factory=lambda: [969.0, 30.0, 1.0])
    seq_length: int = 1024
    cache: str | None = None
    reset_positions: bool = False
    reset_attention: bool = False
    mask_end_loss: bool = False

    def bounds(self, part: Literal["train", "validation"]) -> tuple[float, float]:
        """From and to which share of the sequences a part has (`convert_split_vector_to_split_matrix`)."""
        if self.validation:
            return 0.0, 1.0
        shares = [share / sum(self.split) for share in self.split]
        return (0.0, shares[0]) if part == "train" else (shares[0], shares[0] + shares[1])


Semantics = Literal["strict", "nemo", "nemo-1.21"]


@dataclass(frozen=True)
class PromptData:
    """JSONL rows, one object per line, each with `taskname` and the template's fields.

    `semantics`: `strict`, or `nemo` for token ids, masks and dropped rows as NeMo makes them, including its bugs;
    `nemo-1.21` as NeMo made them up to r1.21.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    max_seq_length: int = 1024
    min_seq_length: int = 1
    add_bos: bool = False
    add_eos: bool = True
    semantics: Semantics = "strict"

    @property
    def as_nemo(self) -> bool:
        return self.semantics != "strict"


@dataclass(frozen=True)
class TaskTemplate:
    """NeMo's task template. `<|VIRTUAL_PROMPT_i|>` marks the i-th split of the virtual tokens.

    Attributes:
        stored_as: the task whose table of the trained prompts it uses, where that is another's.
    """

    taskname: str
    prompt_template: str
    total_virtual_tokens: int
    virtual_token_splits: list[int]
    truncate_field: str | None = None
    answer_only_loss: bool = True
    answer_field: str | None = "answer"
    prompt_init: Literal["random", "text"] = "random"
    prompt_init_text: str | None = None
    stored_as: str | None = None
