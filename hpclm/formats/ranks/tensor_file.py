"""Writes safetensors files tensor by tensor, with their checksum.

The library's `save_file` wants all tensors in host memory at once, which eight GPUs' weights and optimizer would fill,
and gives no checksum, so that the file has to be read again. Files are read with the library. Format:
huggingface/safetensors, README.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write the file, one tensor after the other in host memory. Returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as hashing:
        head = _header(tensors)
        file.write(head)
        digest.update(head)
        for tensor in tensors.values():
            heartbeat.beat()
            _append(file, tensor, digest, hashing)
    return digest.hexdigest()


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Length of the header, then names, types, shapes and places as JSON, filled up with spaces."""
    entries: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
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
