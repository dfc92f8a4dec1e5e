"""Work as a CUDA graph: its kernels are recorded once and started together afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")


def captured(work: Callable[[], Made], pool: Any) -> tuple[torch.cuda.CUDAGraph, Made]:
    """The graph of `work`, and its result, which each replay overwrites. Nothing of it has run yet.

    Args:
        pool: of memory, of a graph that still exists or torch.cuda.graph_pool_handle(); None: one of its own.

    Raises RuntimeError for what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # other threads may ask CUDA what they like: NCCL's watch does
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        made = work()
    return graph, made
