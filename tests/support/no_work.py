"""An engine's runner that does nothing: for tests of what is around it."""

from __future__ import annotations

from hpclm.worker.rank_launch import RankLaunch


def run(launch: RankLaunch) -> None:
    """The rank has ended at once."""
