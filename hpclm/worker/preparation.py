"""What ranks share and one of them makes, before they meet: no collective waits for it, so none can time out.

Rank 0 does the work and leaves a mark in the attempt's folder; the others wait for the mark. While rank 0 gets on, the
stall watch of the others sees it (`AttemptPaths.heartbeat`), so it may take as long as it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hpclm.core.errors import PeerError
from hpclm.core.files import write_text
from hpclm.core.layout import AttemptPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.records import read_record
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.report import RendezvousError

_POLL_S = 0.05
_START_S = 300.0


def prepare_on_first_rank(attempt: AttemptPaths, facts: RankFacts, work: Callable[[], None]) -> None:
    """Let rank 0 do `work` while the others wait for it.

    Raises on rank 0 what `work` raises; on others PeerError when rank 0 failed, RendezvousError when it never started.
    """
    if facts.rank == 0:
        work()
        write_text(attempt.prepared, "")
        return
    deadline = time.monotonic() + _START_S
    # Listing the folder makes an NFS client ask the server again; a bare open may use a cached "does not exist".
    while attempt.prepared not in attempt.root.iterdir():
        report = read_record(RankReport, attempt.rank(0))
        if report is None and time.monotonic() > deadline:
            raise RendezvousError(f"rank 0 did not start within {_START_S:.0f} s")
        if report is not None and report.ended_badly:
            raise PeerError(f"rank 0 failed: {report.message}")
        time.sleep(_POLL_S)
