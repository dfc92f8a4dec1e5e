"""The processes beside a rank: those that pass a stage's metrics on, and the one that measures a node's devices."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_END_S = 15.0

Trackers = Mapping[str, Mapping[str, Any]] | Sequence[str]


@contextlib.contextmanager
def tracked(trackers: Trackers, stage_dir: Path) -> Iterator[None]:
    """While the stage runs; what the trackers do, or fail to do, is theirs alone.

    Args:
        trackers: options by name; in older specs the names.
    """
    options = trackers if isinstance(trackers, Mapping) else {name: {} for name in trackers}
    with _beside([["hpclm.tracking", str(stage_dir), name, json.dumps(one)] for name, one in options.items()]):
        yield


@contextlib.contextmanager
def measured(stage_dir: Path, node_rank: int, *, active: bool) -> Iterator[None]:
    """While the stage runs, rows of what the node's GPUs do."""
    with _beside([["hpclm.nodes.gpu_usage", str(stage_dir), str(node_rank)]] if active else []):
        yield


@contextlib.contextmanager
def _beside(commands: list[list[str]]) -> Iterator[None]:
    started = [(command, process) for command in commands if (process := _started(command)) is not None]
    try:
        yield
    finally:
        for _, process in started:
            assert process.stdin is not None
            process.stdin.close()
        end = time.monotonic() + _END_S
        for command, process in started:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                words = f"did not end within {_END_S:.0f} s; `hpclm track` gives what it missed"
                print(f"{' '.join([command[0], *command[2:3]])} {words}", file=sys.stderr, flush=True)
            process.kill()


def _started(command: list[str]) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.PIPE, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return None
