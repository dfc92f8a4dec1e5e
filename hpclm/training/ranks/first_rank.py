"""What one rank does for all, within a process group."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist

from hpclm.core.errors import PeerError


def on_first_rank(work: Callable[[], None]) -> None:
    """Run `work` on rank 0 while the others wait; its error is raised on every rank, so that none waits for ever."""
    own: Exception | None = None
    if dist.get_rank() == 0:
        try:
            work()
        except Exception as error:
            own = error
    message = [None if own is None else str(own)]
    dist.broadcast_object_list(message, src=0)
    if own is not None:
        raise own
    if message[0] is not None:
        raise PeerError(f"rank 0 failed: {message[0]}")
