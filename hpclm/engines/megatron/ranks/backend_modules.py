"""Exchangeable parts of the engine by name: `Backends` of the spec says which are used, and the result records it."""

from __future__ import annotations

from typing import Any

from hpclm.engines.megatron.ranks.attention import SdpaAttention
from hpclm.engines.megatron.ranks.norm import Norm
from hpclm.engines.megatron.ranks.optimizer import Optimizer

ATTENTIONS: dict[str, Any] = {"sdpa": SdpaAttention}
NORMS: dict[str, Any] = {"torch": Norm}
OPTIMIZERS: dict[str, type[Optimizer]] = {"torch": Optimizer}
