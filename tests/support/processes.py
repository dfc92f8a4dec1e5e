"""Processes that tests start: the repository on their path, signals as a terminal gives them, and a limit on each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# How long anything may take before a test fails: far more than a busy machine needs, so that only a hang reaches it.
LIMIT_S = 300.0

# A Python of its own and not preexec_fn, which is a warning from Python 3.12 on where threads run. What Python ignores
# for itself (SIGPIPE, SIGXFSZ) would be passed on, and is put back too.
_WITH_SIGNALS = """
import os, signal, sys
ignored = sys.argv[1].split()
for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGPIPE", "SIGXFSZ"):
    signal.signal(getattr(signal, name), signal.SIG_IGN if name in ignored else signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with the repository (`hpclm` and `tests`) first on PYTHONPATH."""
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])]), **changes}


class Child(subprocess.Popen[Any]):
    """A process that is killed where its `with` block ends, and at the limit: nobody waits for its words for ever."""

    def __enter__(self) -> Child:
        self._limit = threading.Timer(LIMIT_S, self.kill)
        self._limit.daemon = True
        self._limit.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._limit.cancel()
        self.kill()
        super().__exit__(*error)


def start(argv: Sequence[str | Path], *, ignored: Iterable[signal.Signals] = (), **options: Any) -> Child:
    """Start a process that the test waits for or sends signals to; `with` ends it.

    Signals do what they do by default, save the `ignored`, whoever started the tests: a background job of a script
    begins with SIGINT and SIGQUIT ignored, and so do all its children.
    """
    names = " ".join(number.name for number in ignored)
    before = [sys.executable, "-I", "-S", "-c", _WITH_SIGNALS, names]
    return Child([*before, *map(str, argv)], **{"env": environment(), **options})


def run(argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output kept; one that outlasts the limit fails the test."""
    settings = {"env": environment(), "capture_output": True, "text": True, "check": False, "timeout": LIMIT_S}
    return subprocess.run([str(word) for word in argv], **{**settings, **options})


def python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this interpreter."""
    return run([sys.executable, *arguments], **options)


def hpclm(*arguments: str | Path, code: int = 0, **options: Any) -> str:
    """The command as a process of its own: what it printed. Any other exit code fails the test."""
    done = python("-m", "hpclm.cli", *arguments, **options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout
