"""The options that name a tokenizer's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpclm.core.spec import TokenizerSpec

VOCAB = Annotated[Path | None, typer.Option("--vocab-file", help="GPT-2 style vocab.json.")]
MERGES = Annotated[
    Path | None, typer.Option("--merges-file", "--merge-file", help="GPT-2 style merges.txt, with --vocab-file.")
]
TOKENIZER = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="A tokenizer.json (or its folder), SentencePiece .model or .tiktoken file."),
]


def tokenizer_spec(vocab: Path | None, merges: Path | None, file: Path | None) -> TokenizerSpec:
    from hpclm.core.checkpoint_layout import CheckpointFolder
    from hpclm.core.errors import HpclmError
    from hpclm.core.spec import TokenizerSpec

    if (vocab is None) != (merges is None):
        raise HpclmError("--vocab-file and --merges-file go together; give both")
    if (vocab is None) == (file is None):
        raise HpclmError("give one tokenizer: --tokenizer, or --vocab-file with --merges-file")
    if file is not None:
        path = file.absolute()
        return TokenizerSpec("json", tokenizer_file=str(CheckpointFolder(path).tokenizer if path.is_dir() else path))
    assert vocab is not None
    assert merges is not None
    return TokenizerSpec("bpe", vocab_file=str(vocab.absolute()), merges_file=str(merges.absolute()))
