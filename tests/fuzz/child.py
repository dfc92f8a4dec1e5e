"""The process of one case: limits, an own folder, and nothing that could reach another process or a scheduler."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from tests.fuzz.case import Case

CPU_S = 5.0
MEMORY = 1 << 30
CONTROL = re.compile("[\x1b\x07\x9b]")
# so that what takes a little more than it may is found by its size, not by an error that it survives
_SLACK = 256 << 20
_CHANGES = ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.chmod", "os.chown")
_VARIABLES = ("LANG", "LC_ALL", "PYTHONPATH")


def run_case(case: Case, folder: Path) -> NoReturn:
    """Make the case, run its command and write `report.json` next to its files. Never returns."""
    report: dict[str, Any] = {}
    try:
        files = folder / "files"
        files.mkdir(parents=True)
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        arguments = case.make(files)
        report["arguments"] = arguments
        _save(folder, report)
        _enclose(folder, files)
        before = _cpu()
        _limit(before)
        base = _peak()
        _redirect(folder / "output")
        report.update(_command(arguments))
        report["cpu"] = _cpu() - before
        report["memory"] = max(0, _peak() - base)
        report["control"] = " ".join(
            one.first for one in (sys.stderr, sys.stdout) if isinstance(one, _Terminal) and one.first
        )
    except BaseException:
        report["generator"] = traceback.format_exc()
    _save(folder, report)
    os._exit(0)


def _command(arguments: list[str]) -> dict[str, Any]:
    from hpclm.cli import app

    try:
        code = app.run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        return {"escape": type(error).__name__, "place": place_of(error.__traceback__), "trace": _trace(error)}
    return {"code": code}


def _trace(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error, limit=-25)).splitlines()
    return "\n".join(line[:300] for line in lines[-60:])


def place_of(trace: TracebackType | None) -> str:
    return _innermost(traceback.extract_tb(trace))


def _innermost(frames: traceback.StackSummary) -> str:
    """The innermost frame in hpclm, and the innermost of all."""
    inner, last = "", ""
    for frame in frames:
        if frame.filename == __file__:
            continue
        last = f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        if "/hpclm/" in frame.filename and "/site-packages/" not in frame.filename:
            inner = f"hpclm/{frame.filename.rpartition('/hpclm/')[2]}:{frame.lineno} {frame.name}"
    return inner if inner.endswith(last.rpartition(" ")[2]) else f"{inner} < {last}"


class _Terminal(io.TextIOWrapper):
    """Output that no library strips of escape sequences, and where the first one came from."""

    first = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not self.first and CONTROL.search(text):
            error = sys.exc_info()[1]
            self.first = _innermost(traceback.extract_tb(error.__traceback__) if error else traceback.extract_stack())
        return super().write(text)


def _enclose(folder: Path, files: Path) -> None:
    os.chdir(files)
    kept = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME=str(folder / "home"), PATH="/nonexistent", TMPDIR=str(folder / "tmp"), USER="fuzz")
    tempfile.tempdir = None
    from hpclm.schedulers.local import executor

    def not_started(module: str, place: Path, log: Path, payload: Path) -> bool:
        log.touch()
        return False

    def no_program(*arguments: Any, **options: Any) -> NoReturn:
        raise FileNotFoundError(2, "a case starts no program")

    def no_signal(pid: int, number: int) -> None:
        raise ProcessLookupError(3, "a case signals no process")

    vars(executor)["_start"] = not_started
    vars(subprocess)["Popen"] = no_program
    vars(os).update(kill=no_signal, killpg=no_signal)
    inside = f"{folder}/"

    def only_inside(event: str, arguments: tuple[Any, ...]) -> None:
        """What a changed record names is not written to either."""
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
        elif event in _CHANGES:
            path = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
        else:
            return
        if isinstance(path, (str, bytes)):
            name = os.path.realpath(os.fsdecode(path))
            if not name.startswith((inside, "/dev/", "/proc/")):
                raise PermissionError(13, "a case changes nothing outside its folder", name)

    sys.addaudithook(only_inside)


def _limit(used: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    seconds = int(used + CPU_S) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))
    Path("/proc/self/clear_refs").write_text("5")
    most = _size("VmSize") + MEMORY + _SLACK
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak() -> int:
    return _size("VmHWM")


def _size(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def _redirect(path: Path) -> None:
    """Standard output and error as on a terminal with UTF-8, in one file."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = _Terminal(os.fdopen(1, "wb", closefd=False), encoding="utf-8", errors="strict")
    sys.stderr = _Terminal(
        os.fdopen(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _save(folder: Path, report: dict[str, Any]) -> None:
    (folder / "report.json").write_text(json.dumps(report))
