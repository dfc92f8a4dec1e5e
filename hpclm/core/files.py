"""Atomic writing and reading of small files: no reader ever sees half of one. Standard library only."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_KINDS = (
    (stat.S_ISDIR, "is a folder, not a file"),
    (stat.S_ISFIFO, "is a pipe, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened for reading; what is opened by a path from a user or from another process goes through
    here. Raises OSError, for a pipe or a device too: nothing waits for a writer or reads without end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    raise OSError(errno.EINVAL, next((words for test, words in _KINDS if test(mode)), "is not a file"), str(path))


def open_text(path: Path, *, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None) -> TextIO:
    """`open_file` as text."""
    return io.TextIOWrapper(open_file(path), encoding=encoding, errors=errors, newline=newline)


def umask() -> int:
    """The permissions that files of this process lack."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str, *, mode: int = 0o666, parents: bool = True) -> None:
    """Replace `path` with `text` atomically: a temporary file next to it, fsync, then a rename over it.

    A reader sees the old file or the new one, and a crash leaves one of the two. The umask is taken from `mode`.

    Args:
        parents: whether missing folders are created; otherwise raises FileNotFoundError.
    """
    try:
        handle, temporary = _temporary(path)
    except FileNotFoundError:
        if not parents:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            # half of a surrogate pair, which JSON may name and UTF-8 has not, is written as JSON names it
            stream.write(text.encode("utf-8", "backslashreplace"))
            stream.flush()
            os.fchmod(stream.fileno(), mode & ~umask())
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a failed write names no file, and a rename the temporary one
        raise


def _temporary(path: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")


def sync(path: Path) -> None:
    """Have a file, or a folder's entries, on disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, *, indent: int | None = 2, parents: bool = True) -> None:
    """`write_text` of `value` as JSON. NaN and infinities, which JSON does not have, become null.

    `indent`: None for one line, which is written and read many times faster.
    """
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", parents=parents)


def finite(value: Any) -> Any:
    """`value` with every float that JSON cannot represent replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None if the file does not exist. Raises ValueError if it is not JSON, OSError if it cannot
    be read."""
    try:
        with open_file(path) as stream:
            text = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where it is missing, incomplete or something else.

    For files that another process writes and whose absence is no error.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def append_line(path: Path, value: Any) -> None:
    """Add one JSON object as one line, in one write, so that lines of several writers do not mix."""
    data = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file in order; none of a file that cannot be read. An incomplete or damaged line is
    left out."""
    try:
        stream = open_file(path)
    except OSError:
        return
    with stream:
        for line in stream:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
