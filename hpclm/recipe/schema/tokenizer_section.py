"""Where the tokenizer comes from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hpclm.recipe.schema.base import PathText, Section, fault


class TokenizerTraining(Section):
    """A byte-level BPE that the pretrain stage trains on its own text."""

    # 256 bytes and the special tokens must fit.
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = Field(description="entries, special tokens included")


class Tokenizer(Section):
    """One of three: `train`, `vocab_file` with `merges_file` (GPT-2's), or `tokenizer_file` (a tokenizer.json, or a
    SentencePiece model).

    Left out, the base checkpoint's own is used.
    """

    train: TokenizerTraining | None = Field(default=None, description="train one on the text; pretrain only")
    vocab_file: PathText | None = Field(default=None, description="GPT-2 style vocab.json")
    merges_file: PathText | None = Field(default=None, description="GPT-2 style merges.txt")
    tokenizer_file: PathText | None = Field(
        default=None,
        description="a tokenizer.json of the tokenizers library, a SentencePiece .model or a .tiktoken file",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Tokenizer:
        pair = self.vocab_file is not None, self.merges_file is not None
        if any(pair) and not all(pair):
            raise fault("vocab_file and merges_file go together; give both")
        kinds = [self.train is not None, all(pair), self.tokenizer_file is not None]
        if sum(kinds) != 1:
            raise fault(
                "names no tokenizer, or two; give one of train, vocab_file with merges_file, and tokenizer_file"
            )
        return self
