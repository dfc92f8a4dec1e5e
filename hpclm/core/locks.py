"""A lock between processes of the login nodes; the kernel releases it when its process ends. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpclm.core.errors import HpclmError

_POLL_S = 0.1
# A file system without locks (Lustre mounted without `flock`, some FUSE ones; folders on NFS). What a lock is for has a
# second guard there: the job's script takes a stage only once.
_NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextlib.contextmanager
def exclusive(
    path: Path, busy: str, *, wait_s: float = 0.0, waiting: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Hold the lock at `path`: a file, which is created, or a folder. Yields whether it is held: not on a file system
    without locks. `waiting` is called once where another process holds it.

    Raises HpclmError with the message `busy` if another process holds it for `wait_s`, OSError where the file cannot be
    created.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield _take(handle, busy, time.monotonic() + wait_s, waiting)
    finally:
        os.close(handle)


def _take(handle: int, busy: str, until: float, waiting: Callable[[], None]) -> bool:
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                raise HpclmError(busy) from None
            if not told:
                waiting()
            told = True
            time.sleep(_POLL_S)
        except OSError as error:
            if error.errno not in _NONE:
                raise
            return False
