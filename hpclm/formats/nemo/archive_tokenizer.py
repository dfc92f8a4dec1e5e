"""The tokenizer in an archive."""

from __future__ import annotations

import json
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive
from hpclm.formats.format_guard import guarded
from hpclm.formats.sentencepiece_model import SUFFIX, count_entries


def kind(archive: Archive) -> str | None:
    """`json`, `bpe` (GPT-2's two files), `sentencepiece` or None where it has none that can be read."""
    if archive.ending("tokenizer.json"):
        return "json"
    if archive.ending("vocab.json") and (archive.ending("merges.txt") or archive.ending("merge.txt")):
        return "bpe"
    return "sentencepiece" if archive.ending(SUFFIX) else None


def absent(archive: Archive) -> str:
    """What to do about an archive whose tokenizer cannot be used."""
    return "it contains no tokenizer; give tokenizer.vocab_file and merges_file, or tokenizer_file"


@guarded("a tokenizer")
def vocabulary_size(archive: Archive) -> int | None:
    """Entries of the archive's own tokenizer: its largest id plus one. Raises CheckpointError for a damaged one."""
    which = kind(archive)
    if which is None:
        return None
    if which == "sentencepiece":
        return _sentencepiece_size(archive)
    raw = read_json(archive, "tokenizer.json" if which == "json" else "vocab.json")
    try:
        entries = raw["model"]["vocab"] if which == "json" else raw
        ids = list(range(len(entries))) if isinstance(entries, list) else list(entries.values())
        added = [token["id"] for token in raw.get("added_tokens") or []] if which == "json" else []
        return int(max(ids + added)) + 1
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{archive.path}: its tokenizer cannot be read ({error!r})") from None


def sentencepiece(archive: Archive) -> bytes:
    """The SentencePiece model."""
    member = archive.ending(SUFFIX)
    assert member is not None
    return archive.read(member)


def _sentencepiece_size(archive: Archive) -> int:
    try:
        return count_entries(sentencepiece(archive))
    except ValueError as error:
        raise CheckpointError(f"{archive.path}: its tokenizer cannot be read ({error})") from None


def read_json(archive: Archive, suffix: str) -> dict[str, Any]:
    """A JSON object of the archive."""
    member = archive.ending(suffix)
    assert member is not None
    try:
        found = json.loads(archive.read(member))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{archive.path}: {member.name} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{archive.path}: {member.name} is not a JSON object")
    return found


def merges(archive: Archive) -> list[tuple[str, str]]:
    """GPT-2's merges, in order."""
    member = archive.ending("merges.txt") or archive.ending("merge.txt")
    assert member is not None
    lines = archive.read(member).decode().split("\n")
    parts = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(part) != 2 for part in parts):
        raise CheckpointError(f"{archive.path}: {member.name} is not a list of merges")
    return [(part[0], part[1]) for part in parts]
