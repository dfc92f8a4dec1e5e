"""Full and read-only file systems: how to know them, and what to say. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hpclm.core import heartbeat
from hpclm.core.logging import log

T = TypeVar("T")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (*_FULL, errno.EROFS)
# As safetensors and torch report them, in the text alone.
_WORDS = re.compile(r"no space left|storagefull|quota exceeded|os error (28|122)\b|file write failed", re.IGNORECASE)
_PAUSES_S = (5, 10, 20, 40, 60, 60, 60, 60)


def is_full(error: BaseException) -> bool:
    """Whether an error means that a file system has no room: that may pass."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return _WORDS.search(str(error)) is not None


def is_refused(error: BaseException) -> bool:
    """Whether an error means that a file system takes nothing: full, over its quota, or read-only."""
    return is_full(error) or (isinstance(error, OSError) and error.errno in _REFUSED)


def when_there_is_room(work: Callable[[], T], place: Path) -> T:
    """`work()`, again for five minutes while the file system of `place` is full; it must be able to start over.

    Raises what it raises, at once for any other reason. Waiting counts as a heartbeat.
    """
    for pause in _PAUSES_S:
        try:
            return work()
        except Exception as error:
            if not is_full(error):
                raise
            log(f"{place}: no space left on the file system; trying again in {pause} s")
        for _ in range(pause):
            heartbeat.beat()
            time.sleep(1)
    return work()


def refused(folder: Path) -> str | None:
    """Why nothing can be written in a folder now: full or read-only; None where it can be."""
    probe = folder / f".probe-{time.time_ns()}"
    try:
        probe.write_bytes(bytes(8192))
    except OSError as error:
        return f"{folder}: {error.strerror}" if error.errno in _REFUSED else None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
