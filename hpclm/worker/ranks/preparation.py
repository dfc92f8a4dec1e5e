"""What ranks share and one of them makes, before they join process groups: no collective waits for it, so none can time
out.

Rank 0 does the work and sets a key in the store of the rendezvous; the others ask for it there, not at the shared file
system. While rank 0 gets on, the stall watch of the others sees it (`AttemptPaths.heartbeat`), so it may take as long
as it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch.distributed as dist

from hpclm.core.errors import PeerError
from hpclm.core.layout import AttemptPaths
from hpclm.worker.peers import pauses, refuse_failed
from hpclm.worker.rank_identity import RankFacts

_KEY = "prepared"
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.02, 2.0


def prepare_on_first_rank(
    store: dist.TCPStore, attempt: AttemptPaths, facts: RankFacts, work: Callable[[], None]
) -> None:
    """Let rank 0 do `work` while the others wait for it.

    Raises on rank 0 what `work` raises; on others PeerError when rank 0 failed or is gone.
    """
    if facts.rank == 0:
        work()
        store.set(_KEY, "")
        return
    pause = pauses(_FIRST_PAUSE_S, _MOST_PAUSE_S)
    try:
        # asked, rather than waited for: torch prints two lines for each wait that ends without an answer
        while not store.check([_KEY]):
            time.sleep(next(pause))
    except dist.DistError as error:
        refuse_failed(attempt, [0])
        raise PeerError("rank 0 is gone: its connection ended before it had prepared what all ranks use") from error
