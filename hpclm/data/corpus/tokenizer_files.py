"""Whether two tokenizers are the same, by what their files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hpclm.formats.checkpoint_manifest import sha256_of


class TokenizerFiles(Protocol):
    """The files of a tokenizer, in a recipe's section or in a stage's spec."""

    @property
    def vocab_file(self) -> str | None: ...

    @property
    def merges_file(self) -> str | None: ...

    @property
    def tokenizer_file(self) -> str | None: ...


def same_kind(one: TokenizerFiles, other: TokenizerFiles) -> bool:
    """Whether both are a vocabulary with merges, or both one whole file."""
    return (one.tokenizer_file is None) == (other.tokenizer_file is None)


def difference(own: TokenizerFiles, made: TokenizerFiles) -> tuple[str, str] | None:
    """The first file of both that holds something else, as (own, made); None for the same, as far as can be seen.

    A file that is not here may be the same; of files of two kinds nothing is known.
    """
    for ours, theirs in _pairs(own, made):
        if ours is not None and theirs is not None and not _same(Path(ours), Path(theirs)):
            return ours, theirs
    return None


def comparable(own: TokenizerFiles, made: TokenizerFiles) -> bool:
    """Whether all files of both can be compared: of the same kinds, and here or with the same paths."""
    return all(
        ours == theirs or (ours is not None and theirs is not None and Path(ours).is_file() and Path(theirs).is_file())
        for ours, theirs in _pairs(own, made)
    )


def _pairs(own: TokenizerFiles, made: TokenizerFiles) -> list[tuple[str | None, str | None]]:
    names = ("vocab_file", "merges_file", "tokenizer_file")
    return [(getattr(own, name), getattr(made, name)) for name in names]


def _same(one: Path, other: Path) -> bool:
    if one == other or not (one.is_file() and other.is_file()):
        return True
    return one.stat().st_size == other.stat().st_size and sha256_of(one) == sha256_of(other)
