"""The members of a sweep on this machine, a few at a time: starts their supervisors, independent of the shell.

    python -m hpclm.schedulers.local.sweep_queue <sweep>

reads `<sweep>/queue.json` and keeps `<sweep>/queue-state.json`. Standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hpclm.core.files import read_json, write_json
from hpclm.core.layout import LocalPaths
from hpclm.core.processes import identity, is_alive
from hpclm.core.records import from_dict, read_record, to_dict
from hpclm.core.sweep_layout import SweepPaths
from hpclm.schedulers.local.local_records import Queue, SupervisorState

_POLL_S = 0.1


def serve(root: Path) -> None:
    """Run every member in order, `max_running` at a time; those cancelled before their start are left out."""
    sweep = SweepPaths(root)
    queue = from_dict(Queue, read_json(sweep.queue))
    write_json(sweep.queue_state, to_dict(identity(os.getpid())))
    waiting, running = list(queue.members), list[LocalPaths]()
    while waiting or running:
        running = [paths for paths in running if _runs(paths)]
        while waiting and len(running) < queue.max_running:
            member = waiting.pop(0)
            paths = LocalPaths(Path(member.local))
            if not paths.cancel.exists():
                _start(paths, member.payload)
                running.append(paths)
        time.sleep(_POLL_S)


def _start(paths: LocalPaths, payload: str) -> None:
    with paths.log.open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "hpclm.schedulers.local.supervisor", str(paths.root)],
            cwd=paths.root,
            env={**os.environ, "PYTHONPATH": payload},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )


def _runs(paths: LocalPaths) -> bool:
    state = read_record(SupervisorState, paths.state)
    return state is None or (state.ended_at is None and is_alive(state))


def main(root: str) -> None:
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        serve(Path(root))


if __name__ == "__main__":
    main(sys.argv[1])
