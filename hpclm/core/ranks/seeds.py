"""Random numbers that depend on names and not on the split."""

from __future__ import annotations

import hashlib

import torch


def named_seed(seed: int, name: str) -> int:
    """A 63-bit seed from `seed` and a name, the same in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def named_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator seeded by `named_seed`."""
    return torch.Generator().manual_seed(named_seed(seed, name))
