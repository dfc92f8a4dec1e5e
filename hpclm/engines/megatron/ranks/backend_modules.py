"""Exchangeable parts of the engine by name: `Backends` of the spec says which are used, and the result records it."""

from __future__ import annotations

from hpclm.engines.megatron.ranks.attention import SdpaAttention
from hpclm.engines.megatron.ranks.norm import Norm
from hpclm.engines.megatron.ranks.optimizer import Optimizer

ATTENTIONS: dict[str, type] = {"sdpa": SdpaAttention}
NORMS: dict[str, type] = {"torch": Norm}
OPTIMIZERS: dict[str, type[Optimizer]] = {"torch": Optimizer}
