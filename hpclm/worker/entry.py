"""The entry point of a rank: read the stage's spec, call its engine's runner, record how it ended.

Importable without side effects and without torch. What the runner does is the engine's: `spec.runner` names it.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import cast

from hpclm.core.engine_spec import RankStart
from hpclm.core.layout import StagePaths
from hpclm.core.records import from_dict
from hpclm.core.registry import load_object
from hpclm.core.sealed import read_sealed
from hpclm.worker.rank_identity import rank_facts
from hpclm.worker.rank_launch import RankLaunch, Runner
from hpclm.worker.report import RankRecord
from hpclm.worker.signals import StopFlag
from hpclm.worker.stall_watch import StallWatch
from hpclm.worker.tracking import measured, tracked


def main(stage_dir: str, attempt: str) -> None:
    """Run this rank of the stage in `stage_dir`; `attempt` counts the submits (their restarts are added).

    Returns if the stage is complete, and exits the process with a code of `core.exit_codes` if it is not.
    """
    stop = StopFlag()
    stop.install()
    facts = rank_facts()
    stage = StagePaths(Path(stage_dir))
    paths = stage.attempt(attempt, facts.restart)
    raw = read_sealed(stage.spec) or {}
    start = from_dict(RankStart, raw, ignore_unknown=True, where="spec.json")
    _prepare_environment(start)
    record = RankRecord(paths.rank(facts.rank), facts)
    watch = StallWatch(record, paths, facts.rank, start.recovery.stall_timeout_s)
    watch.start()
    error: BaseException | None = None
    try:
        runner = cast(Runner, load_object(start.runner))
        first_of_node = start.device == "gpu" and facts.local_rank == 0
        with (
            tracked(start.tracking if facts.rank == 0 else {}, stage.root),
            measured(stage.root, facts.node_rank, active=first_of_node),
        ):
            runner(RankLaunch(raw, stage, paths, facts, stop))
    except BaseException as caught:
        error = caught
        traceback.print_exc()
    stood_still_s = watch.stood_still_s()
    watch.stop()
    code = record.finish(error, stood_still_s)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Other ranks may never respond again, so a clean shutdown of the process groups could hang.
        os._exit(code)
    _end_if_teardown_hangs()


def _prepare_environment(start: RankStart) -> None:
    """What every engine needs before it is loaded."""
    if start.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _end_if_teardown_hangs(seconds: float = 60.0) -> None:
    """Exit with success if the interpreter does not end by itself: the stage's result is already written."""
    timer = threading.Timer(seconds, os._exit, args=(0,))
    timer.daemon = True
    timer.start()
