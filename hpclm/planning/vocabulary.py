"""The tokenizer of a stage, and how many entries it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file
from hpclm.core.spec import TokenizerSpec
from hpclm.formats.archive import Archive
from hpclm.formats.nemo import archive_tokenizer as archived
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.formats.sentencepiece_model import SUFFIX, count_entries
from hpclm.formats.tiktoken_encodings import SPECIAL_TOKENS
from hpclm.planning.stage_context import StageContext

_MAX_BYTES = 256 << 20
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


def from_recipe(stage: StageContext) -> tuple[TokenizerSpec | None, int | None]:
    """The recipe's own tokenizer and its vocabulary size (None where unknown or not to be read)."""
    section = stage.recipe.tokenizer
    if section is None:
        return None, None
    if section.train is not None:
        if not stage.task.starts_models:
            stage.error(
                ("tokenizer", "train"),
                f"only a pretrain stage trains a tokenizer, not {stage.recipe.task}; leave tokenizer out to use the "
                "base checkpoint's, or give its files",
                "tokenizer.train is for pretrain",
            )
            return None, None
        if stage.recipe.base is None and stage.recipe.model is not None and stage.recipe.model.checkpoint is not None:
            stage.error(
                ("tokenizer", "train"),
                "the checkpoint's weights belong to the tokenizer it was trained with; leave tokenizer out, "
                "or give its files",
                "tokenizer.train is for a new model",
            )
            return None, None
        return TokenizerSpec("train", section.train.vocab_size), section.train.vocab_size
    if section.tokenizer_file is not None:
        size = _entries(stage, "tokenizer_file", section.tokenizer_file) if stage.files else None
        is_sentencepiece = section.tokenizer_file.endswith(SUFFIX)
        spec = TokenizerSpec("json", size or 0, tokenizer_file=section.tokenizer_file, sentencepiece=is_sentencepiece)
        return spec, size
    assert section.vocab_file is not None
    assert section.merges_file is not None
    size = _entries(stage, "vocab_file", section.vocab_file) if stage.files else None
    if stage.files and not Path(section.merges_file).is_file():
        _no_file(stage, "merges_file", section.merges_file)
    return TokenizerSpec("bpe", size or 0, section.vocab_file, section.merges_file), size


def beside_checkpoint(stage: StageContext, checkpoint: str, vocab_size: int) -> TokenizerSpec | None:
    """The tokenizer stored with a base checkpoint."""
    if is_archive(checkpoint):
        return _in_archive(stage, checkpoint, vocab_size)
    paths = CheckpointFolder(Path(checkpoint))
    is_sentencepiece = stage.files and paths.sentencepiece.is_file()
    if stage.files and paths.root.is_dir() and not is_sentencepiece and not paths.tokenizer.is_file():
        stage.error(
            ("tokenizer",),
            f"{checkpoint} contains no tokenizer.json; give tokenizer.tokenizer_file, or vocab_file and merges_file",
            "tokenizer exists",
        )
        return None
    return TokenizerSpec("base", vocab_size, sentencepiece=is_sentencepiece)


def _in_archive(stage: StageContext, path: str, vocab_size: int) -> TokenizerSpec | None:
    try:
        with Archive(Path(path)) as archive:
            kind = archived.kind(archive)
            if kind is None:
                stage.error(("tokenizer",), f"{path}: {archived.absent(archive)}", "tokenizer exists")
                return None
    except CheckpointError:
        return None  # already reported for the model
    return TokenizerSpec("base", vocab_size, sentencepiece=kind == "sentencepiece")


def fits(stage: StageContext, entries: int | None, vocab_size: int) -> None:
    """Every token id must have a row in the embedding table."""
    if entries is not None and entries > vocab_size:
        stage.error(
            ("model", "vocab_size"),
            f"{vocab_size} is less than the tokenizer's {entries} entries; choose {entries}, "
            "or the model's own tokenizer",
            "tokenizer entries <= vocab_size",
            vocab_size,
            (entries,),
        )


def _no_file(stage: StageContext, key: str, path: str) -> None:
    stage.error(
        ("tokenizer", key),
        f"{path}: does not exist; put the model's tokenizer there, or set tokenizer.{key} to where it is",
        "tokenizer exists",
        path,
    )


def _entries(stage: StageContext, key: str, path: str) -> int | None:
    try:
        return entries_in(Path(path), whole=key == "tokenizer_file")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        _no_file(stage, key, path)
        return None
    except UNREADABLE as error:
        stage.error(
            ("tokenizer", key),
            f"{path}: cannot be read as a vocabulary ({error}); give a complete one",
            "tokenizer",
            path,
        )
        return None


def entries_in(path: Path, *, whole: bool) -> int:
    """Largest token id + 1 in a vocab.json, or, `whole`, in a tokenizer.json, a SentencePiece model or a tiktoken file.

    Raises one of `UNREADABLE`.
    """
    with open_file(path) as file:
        content = file.read(_MAX_BYTES)
    if path.suffix == SUFFIX:
        return count_entries(content)
    if path.suffix == ".tiktoken":
        return _tiktoken_entries(path.name, content)
    ids = list(_ids(json.loads(content), whole=whole))
    if not ids:
        raise ValueError("no entries in it")
    if whole:
        _refuse_broken(content.decode())
    return max(ids) + 1


def _tiktoken_entries(name: str, content: bytes) -> int:
    """With the special tokens of the encoding that the file is called after. Raises ValueError."""
    special = SPECIAL_TOKENS.get(name.removesuffix(".tiktoken"))
    if special is None:
        raise ValueError(f"its name is not that of an encoding: {', '.join(SPECIAL_TOKENS)}")
    ranks = [int(line.split()[1]) for line in content.splitlines() if line.strip()]
    return max([*ranks, *special.values()]) + 1


def _refuse_broken(content: str) -> None:
    """Raises ValueError for a tokenizer.json that the ranks could not load; without the library they find out."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return
    try:
        Tokenizer.from_str(content)
    except Exception as error:  # the library's own, of no common class
        raise ValueError(f"not a tokenizer of the tokenizers library: {error}") from None


def _ids(raw: Any, *, whole: bool) -> list[int]:
    vocabulary = raw["model"]["vocab"] if whole else raw
    # A unigram model lists [piece, score].
    ids = list(range(len(vocabulary))) if isinstance(vocabulary, list) else list(vocabulary.values())
    if whole:
        ids += [token["id"] for token in raw.get("added_tokens") or []]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError("an id is not an integer")
    return ids
