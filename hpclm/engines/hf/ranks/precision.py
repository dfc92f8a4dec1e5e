"""Precisions by name, and computing in one."""

from __future__ import annotations

import torch

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """What is computed with in it."""
    return _DTYPES[precision]


def arithmetic(precision: str, device: torch.device) -> torch.autocast:
    """Below fp32, fp32 weights are computed with in that precision."""
    dtype = dtype_of(precision)
    below = dtype != torch.float32
    return torch.autocast(device.type, dtype if below else None, enabled=below)
