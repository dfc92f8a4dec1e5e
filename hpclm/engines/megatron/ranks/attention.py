"""Attention for megatron-core's layers on torch's scaled_dot_product_attention.

megatron-core's own `DotProductAttention` materialises the [s, s] scores and uses no fused kernel without Transformer
Engine. torch's function picks a flash or memory-efficient kernel on GPUs and a blocked one on CPUs.
"""

from __future__ import annotations

import functools

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from hpclm.data.ranks.packed_layout import Layout, last_of, layout_of
from hpclm.engines.megatron.ranks.context_parallel import attend_over_context
from hpclm.training.ranks import flash_attention as flash


@functools.lru_cache(maxsize=16)
def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """What the last so many positions may attend to, bool [queries, keys]."""
    return torch.ones((queries, keys), dtype=torch.bool, device=device).tril(keys - queries)


class SdpaAttention(MegatronModule):
    """Drop-in for `megatron.core.transformer.dot_product_attention.DotProductAttention`.

    Shapes: query [sq, b, n/tp, d]; key and value [sk, b, groups/tp, d]; result [sq, b, n/tp · d].
    `attention_mask` is bool [b, 1, sq, sk] with True where a position may be attended to (the opposite of
    megatron-core's own convention, whose masks never reach this module), or a `Layout` of int64 for a packed sequence,
    in which each row is causal by itself; without it attention is causal.
    """

    def __init__(self, config: TransformerConfig, *args: object, softmax_scale: float | None = None, **kwargs: object):
        super().__init__(config=config)
        tensor = parallel_state.get_tensor_model_parallel_world_size()
        self.grouped = config.num_query_groups != config.num_attention_heads
        self.hidden_size_per_partition = config.kv_channels * config.num_attention_heads // tensor
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: object = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: object = None,
    ) -> Tensor:
        if attention_mask is not None and attention_mask.dtype == torch.int64:
            return self._attend_packed(query, key, value, layout_of(attention_mask, query.size(0)))
        if self.config.context_parallel_size > 1:
            return attend_over_context(query, key, value, self._attend_to_earlier)
        return self._attend_long(query, key, value, attention_mask)

    def _attend_to_earlier(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of queries that are the last positions of the keys."""
        (length, rows), whole = query.shape[:2], key.size(0)
        if flash.usable(query) and not (self.training and self.config.attention_dropout > 0.0):
            segments = last_of(rows, length, whole, query.device)
            flat_query, flat_key, flat_value = (one.transpose(0, 1).flatten(0, 1) for one in (query, key, value))
            made = flash.attend(flat_query, flat_key, flat_value, segments, self.softmax_scale)
            return made.view(rows, length, self.hidden_size_per_partition).transpose(0, 1)
        return self._attend_long(query, key, value, _causal(length, whole, query.device) if whole > length else None)

    def _attend_long(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        """All [s, b, n, d]; the result [s, b, n · d]."""
        # [s, b, n, d] -> [b, n, s, d], views only
        context = self._attend(
            query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), attention_mask
        )
        # [b, n, sq, d] -> [sq, b, n · d]
        return context.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), self.hidden_size_per_partition)

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        if flash.usable(query) and not (self.training and self.config.attention_dropout > 0.0):
            made = flash.attend(query[:, 0], key[:, 0], value[:, 0], layout.segments, self.softmax_scale)
            return made.view(query.size(0), 1, self.hidden_size_per_partition)
        return layout.pack(self._attend(layout.unpack(query), layout.unpack(key), layout.unpack(value), None))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        """All [b, n, s, d]."""
        if self.grouped and query.size(2) == 1 and not self.training:
            # One token: the heads of a group are queries of one head, which more kernels take (of those for a mask on
            # GPUs none takes groups). [b, n, 1, d] -> [b, groups, n / groups, d]
            folded = query.reshape(query.size(0), key.size(1), -1, query.size(3))
            made = functional.scaled_dot_product_attention(
                folded, key, value, attn_mask=attention_mask, scale=self.softmax_scale
            )
            return made.reshape(query.shape)
        key, value = flash.each_head(query, key, value, attention_mask)
        dropout = self.config.attention_dropout if self.training else 0.0
        attend = functools.partial(
            functional.scaled_dot_product_attention,
            attn_mask=attention_mask,
            dropout_p=dropout,
            is_causal=attention_mask is None and query.size(2) > 1,
            scale=self.softmax_scale,
            enable_gqa=key.size(1) != query.size(1),
        )
        if dropout > 0.0 and not self.config.sequence_parallel:
            # each tensor-parallel rank has different heads and must draw different masks
            with tensor_parallel.get_cuda_rng_tracker().fork():
                return attend(query, key, value)
        return attend(query, key, value)
