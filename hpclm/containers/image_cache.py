"""One shared import of an image: a file in a shared folder, created under a lock and moved into place when complete.

Credentials are the user's own: Enroot reads them from its netrc, Apptainer from its environment or login. They are
never written here; where a registry refuses, the message says where they belong.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpclm.containers.image import Image
from hpclm.containers.runtime import runtime
from hpclm.core.errors import SiteError
from hpclm.core.locks import exclusive

_REFUSED = re.compile(r"\b(401|403)\b|unauthorized|denied|authentication required", re.IGNORECASE)
_END_S = 10.0
_DOCKER_HUB = "auth.docker.io"


@dataclass(frozen=True)
class Import:
    """An image to be imported as a file: its source, its target, and the program that imports it."""

    image: Image
    runtime: str
    target: Path

    @property
    def program(self) -> str:
        """The program that imports it."""
        known = runtime(self.runtime)
        return known.imports_with or known.program or known.name

    def argv(self, to: Path) -> list[str]:
        """The command that creates the file `to`, which must not exist."""
        known = runtime(self.runtime)
        assert known.import_argv is not None
        return known.import_argv(self.image, to)


def planned(image: Image, name: str, folder: Path) -> Import | None:
    """What is to be imported before a job can start by the runtime `name`; None for an image that is a file already."""
    suffix = runtime(name).suffix
    if image.path is not None or suffix is None:
        return None
    return Import(image, name, folder / image.file_name(suffix))


def pull(wanted: Import, log: Callable[[str], None]) -> bool:
    """Import the image unless it exists; returns whether this call imported it. `log` prints a line for the user.

    Raises SiteError with the last line of the program's output; nothing is left behind then.
    """
    if wanted.target.exists():
        return False
    if shutil.which(wanted.program) is None:
        raise SiteError(
            f"{wanted.program} is not installed here, so {wanted.image.singularity} cannot be imported to "
            f"{wanted.target}; import it on a machine that has it (a compute node: `hpclm image pull --job`), "
            "or give a file as the image"
        )
    try:
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SiteError(f"{wanted.target.parent}: the image folder cannot be created: {error.strerror}") from None
    with _lock(wanted.target, log) as alone:
        if wanted.target.exists():
            return False
        if alone:
            _sweep(wanted.target)
        with _terminable():
            _run(wanted, log)
    return True


def _sweep(target: Path) -> None:
    """Remove what killed importers have left. Called under the lock, so nobody is writing it."""
    for leftover in target.parent.glob(f".{glob.escape(target.stem)}.*{target.suffix}"):
        _remove(leftover)


def _remove(path: Path) -> None:
    """Remove an image: a file, or the folder of an unfinished one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise, so that an import cleans up; only the main thread can do this."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    with contextlib.suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _lock(target: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """One importer at a time, over all nodes that share the file system; the kernel frees the lock of a dead process.

    Yields whether the lock is held. On a file system without locks, two may import at the same time: each writes its
    own file, and the last one is kept.
    """
    with contextlib.ExitStack() as stack:
        waiting = f"another import of {target.name} is running; waiting for it"
        lock = exclusive(
            target.with_name(f".{target.name}.lock"), waiting, wait_s=math.inf, waiting=lambda: log(waiting)
        )
        try:
            held = stack.enter_context(lock)
        except OSError as error:
            raise SiteError(
                f"{target.parent}: the image folder cannot be written to: {error.strerror}; set another folder as "
                "container.images in the site profile"
            ) from None
        yield held


def _run(wanted: Import, log: Callable[[str], None]) -> None:
    partial = wanted.target.with_name(
        f".{wanted.target.stem}.{os.uname().nodename}-{os.getpid()}{wanted.target.suffix}"
    )
    argv = wanted.argv(partial)
    log(f"importing {wanted.image.singularity} to {wanted.target}")
    lines: list[str] = []
    try:
        # Without a terminal no program can wait for a password for ever.
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A separate process group: the programs that download and pack are children
            # of enroot's shell and must end with it.
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if line.strip():
                        lines = [*lines[-19:], line.strip()]
                        log(f"  {line.rstrip()}")
            except BaseException:
                _end(process)
                raise
        if process.returncode or not partial.exists():
            raise SiteError(_refusal(wanted, lines, process.returncode))
        partial.replace(wanted.target)
    finally:
        _remove(partial)


def _end(process: subprocess.Popen[str]) -> None:
    """End a group: asked first, so that it removes what it has in temporary folders, and killed if it does not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_S)
        os.killpg(process.pid, signal.SIGKILL)


def _refusal(wanted: Import, lines: list[str], code: int) -> str:
    text = "\n".join(lines)
    what = f"{wanted.image.singularity} could not be imported: {lines[-1] if lines else f'exit code {code}'}"
    if not _REFUSED.search(text):
        return what
    hint = runtime(wanted.runtime).credentials
    return what if hint is None else f"{what}\n{hint(wanted.image.registry or _DOCKER_HUB, os.environ)}"


def job_script(wanted: Import, options: Mapping[str, str], log: Path) -> str:
    """The same as a separate job: a script for sbatch, every value quoted. `options`: sbatch's, by long name."""
    partial = wanted.target.with_name(f".{wanted.target.stem}.job{wanted.target.suffix}")
    lock = wanted.target.with_name(f".{wanted.target.name}.lock")
    own = {"job-name": "hpclm.image", "nodes": "1", "ntasks": "1", "output": str(log), "open-mode": "append"}
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{key}={shlex.quote(value)}" for key, value in {**own, **options}.items()),
        f"target={shlex.quote(str(wanted.target))} partial={shlex.quote(str(partial))}",
        '[ ! -e "$target" ] || exit 0',
        f"exec 9>{shlex.quote(str(lock))} && flock 9",
        '[ ! -e "$target" ] || exit 0',
        'rm -rf "$partial"',
        f'{shlex.join(wanted.argv(partial))} </dev/null || {{ code=$?; rm -rf "$partial"; exit "$code"; }}',
        'mv "$partial" "$target"',
        "",
    ]
    return "\n".join(lines)
