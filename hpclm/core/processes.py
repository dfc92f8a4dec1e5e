"""The current user, and identification of a process even if its id is reused later. Standard library only."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass
class ProcessIdentity:
    """What identifies a process uniquely: its id, the boot it runs in, and its start time in that boot (ticks)."""

    pid: int
    boot_id: str
    start_ticks: int | None


def identity(pid: int) -> ProcessIdentity:
    return ProcessIdentity(pid, boot_id(), _stat(pid)[1])


def is_alive(known: ProcessIdentity) -> bool:
    """Whether the process is still running on this machine."""
    if known.boot_id != boot_id():
        return False
    state, ticks = _stat(known.pid)
    return state not in (None, "Z", "X") and ticks == known.start_ticks


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: the process id must suffice
        return ""


def _stat(pid: int) -> tuple[str | None, int | None]:
    """State letter and start time of a process; (None, None) when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None, None
        try:
            os.kill(pid, 0)
        except OSError:
            return None, None
        return "R", None
    except OSError:
        return None, None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may contain anything
    return fields[0], int(fields[19])


def user_name() -> str:
    """The user who runs this, even if the user id has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def memory_here_gib() -> float | None:
    """This machine's memory; None where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    except (ValueError, OSError):
        return None


def cpus_here() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
