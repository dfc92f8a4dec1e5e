"""The process that passes a stage's metrics on, beside its first rank."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_END_S = 15.0


@contextlib.contextmanager
def tracked(names: list[str], stage_dir: Path) -> Iterator[None]:
    """While the stage runs; what the trackers do, or fail to do, is theirs alone."""
    process = _started(names, stage_dir) if names else None
    try:
        yield
    finally:
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            process.kill()


def _started(names: list[str], stage_dir: Path) -> subprocess.Popen[bytes] | None:
    argv = [sys.executable, "-m", "hpclm.tracking", str(stage_dir), *names]
    try:
        return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"the trackers cannot be started: {error}", file=sys.stderr, flush=True)
        return None
