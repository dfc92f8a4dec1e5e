"""Attention for megatron-core's layers on torch's scaled_dot_product_attention.

megatron-core's own `DotProductAttention` materialises the [s, s] scores and takes no fused kernel without Transformer
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


class Layout:
    """Where the rows of a packed sequence lie, as one int64 tensor [1 + shared, rows, width + extra].

    A tensor, since megatron-core hands it on to the attention as the attention mask, and keeps it for the backward pass
    where activations are recomputed. Every entry of the first axis is the same (a view): its length says how many
    positions the prefix has that all rows share. The first `width` columns are the positions of each row's own tokens
    in the sequence (padded with 0), which unpack it; the others, read row by row, each position's place in
    [rows · (shared + width)], which packs again.
    """

    def __init__(self, tensor: Tensor, length: int) -> None:
        self.shared, self.rows = tensor.size(0) - 1, tensor.size(1)
        self.width = tensor.size(2) - -(-length // self.rows)
        table = tensor[0]
        self.unpack_index = table[:, : self.width].reshape(-1)
        self.pack_index = table[:, self.width :].reshape(-1)[:length]

    @staticmethod
    def make(shared: int, starts: list[int], counts: list[int], length: int) -> Tensor:
        """The tensor for rows whose own tokens begin at `starts`, in a sequence of `length`, on the CPU."""
        rows, width = max(1, len(starts)), max([1, *counts])
        whole = shared + width
        unpack = torch.zeros((rows, width), dtype=torch.int64)
        pack = torch.zeros(rows * -(-length // rows), dtype=torch.int64)
        pack[:shared] = torch.arange(shared)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            unpack[row, :count] = torch.arange(start, start + count)
            pack[start : start + count] = row * whole + shared + torch.arange(count)
        return torch.cat([unpack, pack.view(rows, -1)], dim=1).expand(1 + shared, -1, -1)

    def unpack(self, states: Tensor) -> Tensor:
        """[s, 1, n, d] → [rows, n, shared + width, d]; gradients of the shared prefix sum over the rows."""
        prefix = states[: self.shared, 0].unsqueeze(0).expand(self.rows, -1, -1, -1)
        own = states[:, 0].index_select(0, self.unpack_index).view(self.rows, self.width, *states.shape[2:])
        return torch.cat([prefix, own], dim=1).transpose(1, 2)

    def pack(self, context: Tensor) -> Tensor:
        """[rows, n, shared + width, d] → [s, 1, n · d]."""
        return context.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, self.pack_index).unsqueeze(1)


class SdpaAttention(MegatronModule):
    """Drop-in for `megatron.core.transformer.dot_product_attention.DotProductAttention`.

    Shapes: query [sq, b, n/tp, d]; key and value [sk, b, groups/tp, d]; result [sq, b, n/tp · d].
    `attention_mask` is bool [b, 1, sq, sk] with True where a position may be attended to (the opposite of
    megatron-core's own convention, whose masks never reach this module), or a `Layout` of int64 for a packed sequence,
    whose rows are causal each for itself; without it attention is causal.
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
            layout = Layout(attention_mask, query.size(0))
            return layout.pack(self._attend(layout.unpack(query), layout.unpack(key), layout.unpack(value), None))
        # [s, b, n, d] -> [b, n, s, d], views only
        context = self._attend(
            query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3), attention_mask
        )
        # [b, n, sq, d] -> [sq, b, n · d]
        return context.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), self.hidden_size_per_partition)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> Tensor:
        """All [b, n, s, d]."""
        dropout = self.config.attention_dropout if self.training else 0.0
        attend = functools.partial(
            functional.scaled_dot_product_attention,
            attn_mask=attention_mask,
            dropout_p=dropout,
            is_causal=attention_mask is None and query.size(2) > 1,
            scale=self.softmax_scale,
            enable_gqa=self.grouped,
        )
        if dropout > 0.0 and not self.config.sequence_parallel:
            # each tensor-parallel rank holds other heads and must draw other masks
            with tensor_parallel.get_cuda_rng_tracker().fork():
                return attend(query, key, value)
        return attend(query, key, value)
