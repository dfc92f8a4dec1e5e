"""Writes safetensors files tensor by tensor, with their checksum.

The library's `save_file` wants all tensors in host memory at once, which eight GPUs' weights and optimizer would fill,
and gives no checksum, so that the file has to be read again. Files are read with the library. Format:
huggingface/safetensors, README.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from hpclm.core import heartbeat

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_BLOCK = 16 << 20


@dataclass(frozen=True)
class Shape:
    """A tensor that is to be written."""

    dtype: torch.dtype
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write the file, one tensor after the other in host memory. Returns its SHA-256."""
    shapes = {name: Shape(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_streamed(path, shapes, tensors.__getitem__)


def write_streamed(
    path: Path,
    shapes: Mapping[str, Shape],
    tensor: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a file of tensors that are made when they are needed. Returns its SHA-256.

    Args:
        tensor: the one of a name, of the shape that `shapes` has for it.
        metadata: of the file.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as hashing:
        head = _header(shapes, metadata)
        file.write(head)
        digest.update(head)
        for name, shape in shapes.items():
            heartbeat.beat()
            made = tensor(name)
            if (made.dtype, tuple(made.shape)) != (shape.dtype, shape.sizes):
                raise ValueError(f"{name}: {made.dtype} {tuple(made.shape)} is not {shape}")
            _append(file, made, digest, hashing)
    return digest.hexdigest()


def _header(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None) -> bytes:
    """Length of the header, then names, types, shapes and places as JSON, filled up with spaces."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + shape.bytes
        entries[name] = {"dtype": _NAMES[shape.dtype], "shape": list(shape.sizes), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _append(file: BinaryIO, tensor: torch.Tensor, digest: hashlib._Hash, hashing: ThreadPoolExecutor) -> None:
    """Each block is hashed while it is written."""
    here = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    data = memoryview(here.numpy())  # type: ignore[arg-type] # an array is a buffer
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        hashed = hashing.submit(digest.update, block)
        file.write(block)
        hashed.result()
