"""A build that was killed holds up no later run."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from hpclm.engines.hf.ranks import extension_locks


def lock_in(root: Path, age_s: float) -> Path:
    lock = root / "py311_cpu" / "async_io" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    then = time.time() - age_s
    os.utime(lock, (then, then))
    return lock


def test_an_old_lock_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = lock_in(tmp_path, 3600)
    extension_locks.remove_stale(tmp_path)
    assert list(lock.parent.iterdir()) == []
    assert f"{lock}: removed" in "".join(capsys.readouterr())


def test_a_build_that_goes_on_is_waited_for(tmp_path: Path) -> None:
    lock = lock_in(tmp_path, 0)
    threading.Timer(0.5, lock.unlink).start()
    began = time.monotonic()
    extension_locks.remove_stale(tmp_path)
    assert time.monotonic() - began >= 0.5


def test_nothing_has_been_built_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    assert extension_locks.build_folder() == tmp_path / "none"
    extension_locks.remove_stale(extension_locks.build_folder())
