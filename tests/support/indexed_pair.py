"""A small indexed data set."""

from __future__ import annotations

from pathlib import Path

from hpclm.formats.indexed_dataset import HEADER, MAGIC, VERSION


def indexed_pair(prefix: Path, documents: int = 20, length: int = 10) -> None:
    """The two files: documents of `length` uint16 tokens, all 0."""
    Path(f"{prefix}.bin").write_bytes(bytes(documents * length * 2))
    places = b"".join((number * length * 2).to_bytes(8, "little") for number in range(documents))
    ends = b"".join(number.to_bytes(8, "little") for number in range(documents + 1))
    head = HEADER.pack(MAGIC, VERSION, 8, documents, documents + 1)
    Path(f"{prefix}.idx").write_bytes(head + length.to_bytes(4, "little") * documents + places + ends)
