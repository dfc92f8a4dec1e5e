"""Running cases: a process each, forked from one that has everything imported."""

from __future__ import annotations

import importlib
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz.case import Case, Failure, Good
from tests.fuzz.child import CONTROL, CPU_S, MEMORY, run_case

_IDLE_S, _WALL_S, _LOOK_S = 4.0, 90.0, 0.5
_TRACEBACK = "Traceback (most recent call last)"
_MOST_OUTPUT = 50 << 20


def import_all() -> None:
    """What a login node uses: hpclm without what ranks run, and never torch."""
    import hpclm

    root = Path(str(hpclm.__file__)).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if "ranks" not in parts and "worker" not in parts and parts[-1] not in ("__main__", "__init__"):
            importlib.import_module(".".join(parts))


def run_all(todo: Sequence[Case], keep: Path | None, workers: int = 2) -> Iterator[Failure | Good]:
    """Every case, by some processes side by side."""
    with tempfile.TemporaryDirectory(prefix="hpclm-fuzz-") as scratch:
        pipes: list[int] = []
        pids: list[int] = []
        for worker in range(workers):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                try:
                    _work(todo[worker::workers], Path(scratch) / str(worker), keep, writer)
                finally:
                    os._exit(0)
            os.close(writer)
            pipes.append(reader)
            pids.append(pid)
        yield from _gathered(pipes)
        for pid in pids:
            os.waitpid(pid, 0)


def _gathered(pipes: list[int]) -> Iterator[Failure | Good]:
    parts = dict.fromkeys(pipes, b"")
    while parts:
        for ready in select.select(list(parts), [], [])[0]:
            data = os.read(ready, 1 << 16)
            lines = (parts[ready] + data).split(b"\n")
            parts[ready] = lines.pop()
            if not data:
                del parts[ready]
            for line in lines:
                raw = json.loads(line)
                yield Failure(**{**raw, "case": Case(**raw["case"])}) if "what" in raw else Good(**raw)


def _work(todo: Sequence[Case], scratch: Path, keep: Path | None, writer: int) -> None:
    with os.fdopen(writer, "w") as stream:
        for case in todo:
            folder = scratch / case.folder
            ended = run_one(case, folder)
            if isinstance(ended, Failure) and keep is not None:
                ended.kept = str(keep / case.folder)
                _remove(Path(ended.kept))
                shutil.move(folder, ended.kept)
            _remove(folder)
            stream.write(json.dumps(asdict(ended)) + "\n")
            stream.flush()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def run_one(case: Case, folder: Path) -> Failure | Good:
    """Run a case in a process of its own and judge it."""
    folder.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        run_case(case, folder)
    status, hung = _wait(pid)
    report: dict[str, Any] = {}
    if (folder / "report.json").is_file():
        report = json.loads((folder / "report.json").read_text())
    return _judged(case, report, _output(folder / "output"), status, hung)


def _wait(pid: int) -> tuple[int, str]:
    """The process's end; one that waits for something that does not come is killed."""
    handle = os.pidfd_open(pid)
    began = time.monotonic()
    used, since, hung = -1, began, ""
    try:
        while not select.select([handle], [], [], _LOOK_S)[0]:
            now = time.monotonic()
            state, ticks = _activity(pid)
            if ticks != used or state == "R":
                used, since = ticks, now
            if now - since > _IDLE_S or now - began > _WALL_S:
                hung = _where(pid)
                os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1], hung
    finally:
        os.close(handle)


def _activity(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[11]) + int(fields[12])


def _where(pid: int) -> str:
    try:
        return f"waits in {Path(f'/proc/{pid}/wchan').read_text() or '?'}"
    except OSError:
        return "waits"


def _output(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_MOST_OUTPUT).decode("utf-8", "replace")
    except OSError:
        return ""


def _judged(case: Case, report: dict[str, Any], output: str, status: int, hung: str) -> Failure | Good:
    from hpclm.core.exit_codes import ExitCode

    found: tuple[str, str] | None = None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    codes = [int(code) for code in ExitCode]
    control = CONTROL.search(output)
    if report.get("generator"):
        found = "generator", report["generator"].strip().splitlines()[-1]
        output = report["generator"]
    elif hung:
        found = "hung", hung
    elif number == signal.SIGXCPU or report.get("cpu", 0) > CPU_S:
        found = "cpu", f"more than {CPU_S:.0f} s"
    elif number:
        found = "signal", signal.Signals(number).name
    elif "escape" in report:
        found = "escape", f"{report['escape']} at {report['place']}"
        output = report["trace"]
    elif report.get("memory", 0) > MEMORY:
        found = "memory", f"{report['memory'] >> 20} MiB"
    elif _TRACEBACK in output:
        found = "traceback", output.strip().splitlines()[-1][:200]
    elif report.get("code") not in codes:
        found = "exit-code", str(report.get("code"))
    elif control:
        found = "control", f"{control[0]!r} from {report.get('control')}"
    if found is None:
        return Good(case.kind, int(report["code"]))
    return Failure(case, *found, report.get("arguments", []), _last(output))


def _last(output: str) -> str:
    lines = [line[:400] for line in output.splitlines()]
    return "\n".join(lines[-30:])
