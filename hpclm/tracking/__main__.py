"""Follows a stage's metrics until its standard input ends, with the rank that started it:
`python -m hpclm.tracking STAGE_DIR TRACKER…`."""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
from pathlib import Path

from hpclm.core.layout import StagePaths
from hpclm.tracking.follower import Follower
from hpclm.tracking.tracker import Tracker, tracker_named

_PAUSE_S = 2.0


def main(stage_dir: str, *names: str) -> None:
    os.nice(10)  # the rank comes first
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # for the rank, whose last rows come after them
    stage = StagePaths(Path(stage_dir))
    following = {name: _follower(tracker_named(name), stage) for name in names}
    ending = False
    while following:
        for name in list(following):
            try:
                following[name].pass_on()
            except Exception as error:  # whatever: the run goes on without it
                print(f"{name}: no more metrics ({type(error).__name__}: {error}); `hpclm track` gives them later",
                      file=sys.stderr, flush=True)  # fmt: skip
                del following[name]
        if ending:
            break
        ending = bool(select.select([sys.stdin], [], [], _PAUSE_S)[0])
    for one in following.values():
        one.close()


def _follower(tracker: Tracker, stage: StagePaths) -> Follower:
    return Follower(stage.metrics, functools.partial(tracker.open, stage.tracked(tracker.name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
