"""Layer and RMS norm for megatron-core's layers, also under sequence parallelism.

megatron-core's plain-torch norm refuses sequence parallelism and its other norms need Apex or Transformer Engine.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn import functional

from hpclm.formats.ranks.parameters import attributes


class Norm:
    """Builds torch's LayerNorm or RMSNorm as the configuration requires. A class, since megatron-core treats a function
    as an already built layer."""

    def __new__(  # type: ignore[misc] # a norm of torch's is made, and never a Norm
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: object
    ) -> torch.nn.Module:
        layer = _LayerNorm1P if config.layernorm_zero_centered_gamma else torch.nn.LayerNorm
        kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else layer
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            # each rank sees a part of the sequence: megatron-core sums such gradients over the tensor ranks
            attributes(parameter).sequence_parallel = config.sequence_parallel
        return norm


class _LayerNorm1P(torch.nn.LayerNorm):
    """A layer norm whose scale is stored less one, as NeMo's (nemo/collections/nlp/modules/common/megatron/
    layer_norm_1p.py)."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(states, self.normalized_shape, self.weight + 1, self.bias, self.eps)
