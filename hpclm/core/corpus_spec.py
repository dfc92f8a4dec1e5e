"""A corpus and its tokens: the input of `hpclm data tokenize` and of a stage that does the same on many nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import SPEC_VERSION, NodeNeeds, RecoverySpec, TokenizerSpec

Form = Literal["jsonl", "parquet", "text"]


@dataclass(frozen=True)
class CorpusSpec:
    """A corpus and its tokens.

    Attributes:
        inputs: files and folders; `pattern`: names taken from folders; `form`: of the files, None by their names.
        keys: of the objects in JSONL and parquet: one data set each.
        document: what one document of a plain text is.
        append_eod: end each document that has tokens with the tokenizer's end token; `prepend_bos` likewise begins it.
        special_tokens: take names of special tokens in texts for these tokens, as Hugging Face's tokenizers do.
        skip_bad: leave malformed lines out.
        encoder: one of `encoding.ENCODERS`, or auto.
        prefix: of the output: `PREFIX_KEY_document.bin` and `.idx`.
    """

    inputs: list[str]
    tokenizer: TokenizerSpec
    prefix: str
    pattern: str | None = None
    form: Form | None = None
    keys: list[str] = field(default_factory=lambda: ["text"])
    document: Literal["file", "line", "paragraph"] = "file"
    append_eod: bool = False
    prepend_bos: bool = False
    special_tokens: bool = False
    skip_bad: bool = False
    encoder: str = "auto"

    @property
    def parts_folder(self) -> Path:
        return Path(f"{self.prefix}.parts")

    @property
    def record(self) -> Path:
        """What was tokenised, and how; written last."""
        return Path(f"{self.prefix}.tokenized.json")

    def output(self, key: str) -> str:
        """The prefix of a key's data set, named as Megatron-LM's tools/preprocess_data.py names it."""
        return f"{self.prefix}_{key}_document"


@dataclass(frozen=True)
class TokenizeStageSpec:
    """A stage that tokenises a corpus, a piece of it in each rank at a time."""

    run: str
    stage: str
    stage_dir: str
    device: Literal["cpu", "gpu"]
    parallel: ParallelSpec
    corpus: CorpusSpec
    task: str = "tokenize"
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    needs: NodeNeeds = field(default_factory=NodeNeeds)
    engine: str = "corpus"
    runner: str = "hpclm.engines.corpus.run:run"
    spec_version: int = SPEC_VERSION
