"""A node's local disk for ZeRO-Infinity: what cannot be offloaded to is said before the first step."""

from __future__ import annotations

import ctypes.util
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpclm.nodes import local_disk


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an image that has libaio and a compiler."""
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    monkeypatch.setattr(local_disk, "_there", lambda *names: True)


def found(root: Path, folder: Path, needed: int = 1, kind: str = "ext4") -> list[str]:
    mounts, place = root / "mounts", str(folder.parent).replace(" ", r"\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\n/dev/nvme0 {place} {kind} rw 0 0\n")
    return [one.message for one in local_disk.examine(str(folder), needed, mounts)]


def test_a_disk_with_room_is_well_and_keeps_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a disk" / "scratch"
    folder.parent.mkdir()
    assert found(tmp_path, folder) == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("kind", "words"), [("tmpfs", "is in memory (tmpfs)"), ("nfs4", "is on nfs4, which is slow")])
def test_memory_and_networks_are_no_local_disks(tmp_path: Path, kind: str, words: str) -> None:
    (message,) = found(tmp_path, tmp_path / "scratch", kind=kind)
    assert words in message


def test_too_little_space_is_told(tmp_path: Path) -> None:
    (message,) = found(tmp_path, tmp_path / "scratch", needed=shutil.disk_usage(tmp_path).total * 2)
    assert "GiB free, and about" in message


def test_a_disk_without_direct_writes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuses(path: Any, flags: int, *more: Any, **also: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more, **also)

    monkeypatch.setattr(os, "open", refuses)
    (message,) = found(tmp_path, tmp_path / "scratch")
    assert "takes no direct writes (Invalid argument)" in message


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("a file")
    (message,) = found(tmp_path, tmp_path / "scratch" / "inner")
    assert "cannot be made" in message


def test_an_image_without_libaio_or_a_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(local_disk, "_there", lambda *names: False)
    messages = found(tmp_path, tmp_path / "scratch")
    assert any("libaio is not here" in one for one in messages)
    assert any("no C++ compiler" in one for one in messages)
