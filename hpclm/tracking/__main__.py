"""Follows a stage's metrics for one tracker until its standard input ends, with the rank that started it:
`python -m hpclm.tracking STAGE_DIR TRACKER OPTIONS`."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from hpclm.core.layout import StagePaths
from hpclm.core.secrets import masked
from hpclm.tracking.curve import curve_of
from hpclm.tracking.follower import Follower
from hpclm.tracking.tracker import tracker_named

_PAUSE_S = 2.0
_FIRST_RETRY_S = 30.0
_LONGEST_RETRY_S = 900.0


def main(stage_dir: str, name: str, options: str) -> None:
    os.nice(10)  # the rank comes first
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # for the rank, whose last rows come after them
    stage, given = StagePaths(Path(stage_dir)), json.loads(options)
    tracker = tracker_named(name)
    follower = Follower(stage, lambda: tracker.open(stage.tracked(name), curve_of(stage, given)))
    retry_s, not_before = _FIRST_RETRY_S, 0.0
    ending = False
    while True:
        if ending or time.monotonic() >= not_before:
            try:
                follower.pass_on()
                retry_s = _FIRST_RETRY_S
            except Exception as error:  # whatever: the run goes on without it
                if ending or isinstance(error, ImportError):
                    _say(name, error, "`hpclm track` gives them later")
                    return
                _say(name, error, f"next try in {retry_s:.0f} s")
                follower.begin_anew()
                not_before = time.monotonic() + retry_s
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
        if ending:
            break
        ending = bool(select.select([sys.stdin], [], [], _PAUSE_S)[0])
    try:
        follower.close()
    except Exception as error:
        _say(name, error, "`hpclm track` gives them later")


def _say(name: str, error: Exception, then: str) -> None:
    words = masked(str(error)).strip().splitlines() or [""]
    what = f"{type(error).__name__}: {words[0]}"
    print(f"{name}: metrics are not passed on ({what}); {then}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
