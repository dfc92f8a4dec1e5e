"""The judge of the cases: each kind of bad end is found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hpclm.cli import app
from tests.fuzz import watch
from tests.fuzz.case import Case, Failure
from tests.fuzz.kinds import KINDS


def _raise() -> int:
    raise KeyError("x")


def _loop() -> int:
    while True:
        pass


def _fill() -> int:
    held = bytearray(1200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    return 0


def _wait() -> int:
    os.mkfifo("pipe")
    return Path("pipe").stat().st_size + len(Path("pipe").read_bytes())


def _kill() -> int:
    signal.raise_signal(signal.SIGKILL)
    return 0


def _say(text: str) -> Callable[[], int]:
    def say() -> int:
        print(text)
        return 0

    return say


def _outside() -> int:
    Path("/elsewhere").write_text("x")
    return 0


BAD: list[tuple[str, Callable[[], int]]] = [
    ("escape", _raise),
    ("escape", _outside),
    ("cpu", _loop),
    ("memory", _fill),
    ("hung", _wait),
    ("signal", _kill),
    ("exit-code", lambda: 99),
    ("traceback", _say("Traceback (most recent call last):")),
    ("control", _say("a \x1b[31m")),
    ("control", _say("a \x9b31m")),
]


@pytest.mark.parametrize(("what", "command"), BAD)
def test_a_bad_end_is_found(
    what: str, command: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "one", lambda rng, folder: [])
    monkeypatch.setattr(app, "run", lambda arguments: command())
    ended = watch.run_one(Case(1, 1, "one"), tmp_path / "case")
    assert isinstance(ended, Failure)
    assert ended.what == what, ended
    assert not Path("/elsewhere").exists()


def test_the_same_number_is_the_same_case(tmp_path: Path) -> None:
    for kind in KINDS:
        made = []
        for folder in (tmp_path / kind / "a", tmp_path / kind / "b"):
            folder.mkdir(parents=True)
            arguments = Case(5, 7, kind).make(folder)
            files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.yaml") if path.is_file()}
            made.append((arguments, files))
        assert made[0] == made[1]
