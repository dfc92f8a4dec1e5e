"""The recipe's section `tokenize`: the corpus, and what becomes of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpclm.recipe.schema.base import Line, PathText, Section


class Tokenize(Section):
    """JSONL (.gz, .zst), parquet or text to Megatron's .bin and .idx files, as `hpclm data tokenize` does."""

    inputs: tuple[PathText, ...] = Field(min_length=1, max_length=32_000, description="files and folders")
    json_keys: tuple[Line, ...] = Field(
        default=("text",), min_length=1, max_length=64, description="keys of each object's text; a data set each"
    )
    pattern: Line | None = Field(default=None, description="names taken from folders, as in *.jsonl.gz")
    format: Literal["jsonl", "parquet", "text"] | None = Field(
        default=None, description="of the files; null: by their names"
    )
    document: Literal["file", "line", "paragraph"] = Field(
        default="file", description="plain text: what one document is"
    )
    append_eod: bool = Field(default=False, description="end each document with the end token")
    prepend_bos: bool = Field(default=False, description="begin each document with the begin token")
    special_tokens: bool = Field(default=False, description="names of special tokens in texts become these tokens")
    skip_bad: bool = Field(default=False, description="leave malformed lines out and count them")
    encoder: Literal["auto", "gigatoken", "tiktoken", "tokenizers"] = Field(
        default="auto", description="auto: the fastest installed that agrees with tokenizers on a sample"
    )
    out: PathText | None = Field(
        default=None, description="prefix of PREFIX_KEY_document.bin and .idx; null: in the run's folder"
    )
