"""Context parallelism: each rank has two chunks of the sequence, and gathers keys and values of all.

The sequence is cut into 2·CP chunks, of which rank r has number r and number 2·CP - 1 - r, as megatron-core divides it
(rope_utils.py, get_pos_emb_on_this_cp_rank), so that all ranks have as many earlier positions to attend to. Queries
stay; keys and values of the other chunks come by an all-gather whose backward pass is a reduce-scatter, as Llama 3 was
trained (arXiv:2407.21783, section 3.3.2). It needs no kernel that returns the sums of a softmax, so it runs on any
attention of torch and on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from hpclm.data.ranks.batches import TrainingBatch

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def own_positions(length: int, rank: int, size: int) -> Tensor:
    """Positions in the sequence that a rank has, int64 [length / size]. `length` is a multiple of 2 · size."""
    chunks = torch.arange(length).view(2 * size, -1)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]])


def own_part(batch: TrainingBatch, rank: int, size: int) -> TrainingBatch:
    """The positions of a batch that a rank has."""
    chosen = own_positions(batch.tokens.size(1), rank, size).to(batch.tokens.device)
    names = ("tokens", "labels", "position_ids", "loss_mask")
    return replace(batch, **{name: getattr(batch, name).index_select(1, chosen) for name in names})


def attend_over_context(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """Causal attention of this rank's positions to those before them in the whole sequence.

    Args:
        query, key, value: [s / CP, b, n, d], this rank's positions.
        attend: of [s, b, n, d] queries that are the last positions of the keys; gives [s, b, n · d].
    """
    group = parallel_state.get_context_parallel_group()
    rank, size = group.rank(), group.size()
    # in one message
    keys, values = _in_order(torch.cat([key, value], dim=-1), group, size).chunk(2, dim=-1)
    half = query.size(0) // 2
    made = []
    for number, part in ((rank, query[:half]), (2 * size - 1 - rank, query[half:])):
        end = (number + 1) * half
        made.append(attend(part, keys[:end], values[:end]))
    return torch.cat(made)


def _in_order(states: Tensor, group: torch.distributed.ProcessGroup, size: int) -> Tensor:
    """The whole sequence in its order, [s, b, n, d], of each rank's part."""
    gathered: Tensor = tensor_parallel.gather_from_sequence_parallel_region(states, group=group)
    chunks = gathered.view(size, 2, -1, *gathered.shape[1:])
    first, second = chunks[:, 0], chunks[:, 1].flip(0)
    return torch.cat([first, second]).flatten(0, 1)
