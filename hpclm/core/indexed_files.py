"""Where an indexed data set's two files lie. Standard library only."""

from __future__ import annotations

from pathlib import Path


def bin_path(prefix: str) -> Path:
    """Its tokens."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str) -> Path:
    """Where its sequences and documents lie in them."""
    return Path(f"{prefix}.idx")
