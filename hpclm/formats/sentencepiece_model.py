"""How many entries a SentencePiece model has, read without the sentencepiece package: for the login node.

A model is a protocol buffer, `ModelProto` (sentencepiece_model.proto), whose field 1 is repeated, once for each entry.
The wire format is that of protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

SUFFIX = ".model"
_ENTRY = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def count_entries(raw: bytes) -> int:
    """Entries of the vocabulary, the ids of which are 0 and up. Raises ValueError for anything but a model."""
    place = count = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, place = _varint(raw, place)
            place += size
        elif kind == _VARINT:
            _, place = _varint(raw, place)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("not a SentencePiece model")
        count += field == _ENTRY and kind == _BYTES
    if place != len(raw) or not count:
        raise ValueError("not a SentencePiece model, or cut off")
    return count


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place behind it."""
    value = shift = 0
    while place < len(raw) and shift < 64:
        byte = raw[place]
        value, place = value | (byte & 0x7F) << shift, place + 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("not a SentencePiece model, or cut off")
