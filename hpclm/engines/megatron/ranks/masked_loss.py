"""The loss of a micro-batch from its tokens' losses."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def masked_mean(
    loss_mask: Tensor,
    losses: Tensor,
    *,
    share: float | Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ(l·mask)/Σmask of a micro-batch (NeMo's loss_func), with both sums for an exact mean over many.

    Args:
        share: divisor instead of Σmask: the global batch's tokens that count over its number of micro-batches, so
            that the mean over the micro-batches is the mean over all those tokens.
        group: ranks that have the other positions of the same rows; the loss is then this rank's part of the mean.
    """
    losses = losses.float()
    total, weight = (losses * loss_mask).sum(), loss_mask.sum()
    if share is None:
        count = weight
        if group is not None:
            count = weight.clone()
            dist.all_reduce(count, group=group)
        share = count.clamp(min=1.0)
    loss = total / share
    # megatron-core divides the returned loss in place
    return loss, {"loss": loss.detach().clone(), "total": total.detach(), "weight": weight.detach()}
