"""Files from the Hub into a folder: several at once, each from the byte where it was interrupted, and compared with its
digest before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file
from hpclm.formats.huggingface.hub_files import HubFile

_AT_ONCE = 4
_TRIES = 3
_PAUSE_S = 0.1
# How long a stop waits for its threads; what they still write goes to the end of partial files, and harms nothing.
_STOP_S = 2.0
_CHUNK = 1 << 22
# The Hub's own cleaning knows files of this ending
_PART = ".hpclm.incomplete"

Get = Callable[[HubFile, Any, int], None]


@dataclass(frozen=True)
class Target:
    """A file and where it goes."""

    file: HubFile
    path: Path

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + _PART)

    @property
    def missing(self) -> int:
        """The bytes that are not here yet, going by sizes."""
        if _size(self.path) == self.file.size:
            return 0
        return max(0, self.file.size - _size(self.part))


@dataclass(frozen=True)
class Progress:
    """Of a download: files and bytes that are here, of how many; `moved` are those of this process."""

    done: int
    files: int
    bytes: int
    size: int
    moved: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.moved / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        return (self.size - self.bytes) / self.rate if self.moved else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def digest_of(path: Path, like: str, stop: threading.Event | None = None) -> str:
    """The digest of a file, of the kind of `like` (`HubFile.digest`). Raises OSError."""
    with open_file(path) as stream:
        if len(like) == 64:
            found = hashlib.sha256()
        else:  # as git names a file
            found = hashlib.sha1(b"blob %d\0" % os.fstat(stream.fileno()).st_size, usedforsecurity=False)
        while (chunk := stream.read(_CHUNK)) and not (stop and stop.is_set()):
            found.update(chunk)
    return found.hexdigest()


def is_whole(path: Path, file: HubFile, stop: threading.Event | None = None) -> bool:
    """Whether a file is here with the size and the digest that the Hub says. Raises OSError."""
    return path.is_file() and path.stat().st_size == file.size and digest_of(path, file.digest, stop) == file.digest


class _StoppedError(Exception):
    """Another file failed, or the user interrupted."""


class _Part(io.BufferedWriter):
    """A partial file that counts what is written to it."""

    def __init__(self, path: Path, wrote: Callable[[int], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+"))
        self._wrote = wrote
        self.seek(0, os.SEEK_END)

    def write(self, data: Any, /) -> int:
        self._wrote(len(data))
        return super().write(data)


@dataclass
class Transfer:
    """Downloads files. `get(file, stream, have)` writes a file from byte `have` on; `ready(target)` is called for each
    whole file; `is_network(error)` says what is tried again."""

    get: Get
    is_network: Callable[[BaseException], bool]
    ready: Callable[[Target], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, targets: Sequence[Target], show: Callable[[Progress], None]) -> None:
        """Returns when each file is whole. Raises the first error of any; what has arrived stays for the next time."""
        self._left = list(reversed(targets))
        self._here = {target.path: target.file.size - target.missing for target in targets}
        self._lock, self._errors, self._done, self._moved = threading.Lock(), list[BaseException](), 0, 0
        began, size = time.monotonic(), sum(target.file.size for target in targets)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(_AT_ONCE, len(targets)))]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self._errors:
                time.sleep(_PAUSE_S)
                here = sum(self._here.values())
                show(Progress(self._done, len(targets), here, size, self._moved, time.monotonic() - began))
        finally:
            self.stop.set()
            until = time.monotonic() + _STOP_S
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
        if self._errors:
            raise self._errors[0]

    def _work(self) -> None:
        while not self.stop.is_set():
            with self._lock:
                target = self._left.pop() if self._left else None
            if target is None:
                return
            try:
                self._make(target)
            except _StoppedError:
                return
            except BaseException as error:  # raised again by `run`
                self._errors.append(error)
                self.stop.set()
                return
            with self._lock:
                self._done += 1

    def _make(self, target: Target) -> None:
        if not is_whole(target.path, target.file, self.stop):
            self._refuse_stopped()
            self._fetch(target)
        self._refuse_stopped()
        self._here[target.path] = target.file.size
        self.ready(target)

    def _fetch(self, target: Target) -> None:
        file, part = target.file, target.part
        for left in reversed(range(_TRIES)):
            have = _size(part)
            if have > file.size:
                part.unlink()
                have = 0
            self._here[target.path] = have
            try:
                self._get(target, have)
            except Exception as error:
                self._refuse_stopped()
                if not left or not self.is_network(error):
                    raise
                continue
            if is_whole(part, file, self.stop):
                part.replace(target.path)
                return
            self._refuse_stopped()
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
        raise CheckpointError(
            f"{file.name}: arrived {_TRIES} times with another content than the Hub's {file.digest[:12]}…; something "
            "between changes it (a proxy, or a mirror that HF_ENDPOINT names): ask who runs it"
        )

    def _get(self, target: Target, have: int) -> None:
        def wrote(count: int) -> None:
            self._refuse_stopped()
            with self._lock:
                self._here[target.path] = min(self._here[target.path] + count, target.file.size)
                self._moved += count

        with _Part(target.part, wrote) as stream:
            if have < target.file.size:
                self.get(target.file, stream, have)

    def _refuse_stopped(self) -> None:
        if self.stop.is_set():
            raise _StoppedError
