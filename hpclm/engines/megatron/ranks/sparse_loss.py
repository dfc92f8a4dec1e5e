"""Sparse loss: the output layer of a training step at the positions whose loss counts, and at no others.

Prompt learning usually trains on answers alone, a tenth of the tokens, while the output layer is the widest of all: at
GPT-2's vocabulary its logits are most of a small model's memory and much of its time. A frozen model does not need the
other positions, but megatron-core's `GPTModel._postprocess` computes them all.
"""

from __future__ import annotations

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from torch import Tensor


def sparse_losses(gpt: GPTModel, states: Tensor, labels: Tensor, loss_positions: Tensor) -> Tensor:
    """Per-token losses fp32 [b, s], 0 at positions that are not in `loss_positions`.

    Args:
        states: the last layer's output after its norm, [s, b, h], or this rank's share [s/tp, b, h] under sequence
            parallelism.
        labels: int64 [b, s].
        loss_positions: int64 [n], positions in [b · s], row by row; at least one.
    """
    layer = gpt.output_layer
    shared = layer.sequence_parallel
    if shared:
        # The layer's own backward then sums the gradient over tensor ranks: each keeps its part of the sequence.
        states = tensor_parallel.gather_from_sequence_parallel_region(states, tensor_parallel_output_grad=False)
    rows, length = labels.shape
    chosen = states.transpose(0, 1).reshape(rows * length, -1).index_select(0, loss_positions).unsqueeze(1)
    weight = gpt.shared_embedding_or_output_weight() if gpt.share_embeddings_and_output_weights else None
    layer.sequence_parallel = False
    try:
        logits, _ = layer(chosen, weight=weight)
    finally:
        layer.sequence_parallel = shared
    losses = gpt.compute_language_model_loss(labels.reshape(-1).index_select(0, loss_positions).unsqueeze(0), logits)
    found = torch.zeros(rows * length, dtype=losses.dtype, device=losses.device)
    return found.index_copy(0, loss_positions, losses.squeeze(0)).view(rows, length)
