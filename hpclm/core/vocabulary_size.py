"""Rows of a model's embedding table."""

from __future__ import annotations

from math import lcm

VOCABULARY_MULTIPLE = 128


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Rows of the embedding table: `vocab_size` rounded up to a multiple of lcm(128, tensor).

    Megatron-LM pads to a multiple of 128·TP, which makes a model's shape depend on the split it was created with.
    The least common multiple is the same 128 for every power of two up to 128, so that one checkpoint loads at any
    usual split and all splits train the same weights; the table still divides evenly over the tensor ranks.
    """
    multiple = lcm(VOCABULARY_MULTIPLE, tensor)
    return -(-vocab_size // multiple) * multiple
