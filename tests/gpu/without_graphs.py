"""A rank that starts every kernel by itself, as one without CUDA graphs does."""

from __future__ import annotations

from typing import Any

from hpclm.engines.megatron.ranks import decode_graph, frozen_passes
from hpclm.worker import entry


def main(stage_dir: str, attempt: str) -> None:
    def never(*arguments: Any) -> bool:
        return False

    frozen_passes.FrozenPasses._pays = never  # type: ignore[method-assign,assignment]
    decode_graph.usable = never  # type: ignore[assignment]
    entry.main(stage_dir, attempt)
