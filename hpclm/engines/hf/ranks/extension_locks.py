"""Locks that killed processes have left where torch builds extensions.

DeepSpeed compiles operations as they are first used, into one folder of the user's. Whoever builds makes a file `lock`
there, and everybody else waits until it is gone (torch/utils/file_baton.py): for ever, where the builder was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from hpclm.core import heartbeat
from hpclm.core.logging import log

# No build of an operation takes as long.
_STALE_S = 600.0
_POLL_S = 1.0


def build_folder() -> Path:
    """Where torch builds, of every version (torch/utils/cpp_extension.py, get_default_build_root)."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def remove_stale(root: Path, *, stale_s: float = _STALE_S) -> None:
    """Wait for what is being built, and remove locks that are too old to be anybody's."""
    for lock in sorted({*root.glob("*/lock"), *root.glob("*/*/lock")}):
        while (age := _age(lock)) is not None:
            heartbeat.beat()
            if age > stale_s:
                log(f"{lock}: removed; whoever made it {age:.0f} s ago has been killed while building")
                lock.unlink(missing_ok=True)
                break
            time.sleep(_POLL_S)


def _age(lock: Path) -> float | None:
    """Seconds, by the clock of the file system; None once it is gone."""
    probe = lock.with_name(f".clock-{os.getpid()}")
    with contextlib.suppress(OSError):
        probe.touch()
        try:
            return probe.stat().st_mtime - lock.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    return None
