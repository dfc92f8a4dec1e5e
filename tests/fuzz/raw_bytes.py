"""Mutation of a file's bytes, whatever they mean."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from random import Random

from tests.fuzz.odd_values import bomb, merge_bomb

_ODD = (
    b"\x00",
    b"\xff\xfe",
    b"\x1b[31m",
    b"\x07",
    b"\xc2\x9b",
    b"\xed\xa0\x80",
    b"\t",
    b"\r",
    b"\x85",
    b"\xef\xbb\xbf",
    b"\xc3",
)


def encoded(text: str) -> bytes:
    """UTF-8, with lone surrogates as the bytes they would have."""
    return text.encode("utf-8", "surrogatepass")


def damaged(data: bytes, rng: Random, times: int = 1) -> bytes:
    """Flipped, cut, inserted, repeated or removed bytes."""
    for _ in range(rng.randint(1, times)):
        at, way = rng.randint(0, len(data)), rng.randrange(8)
        if way == 0:
            data = data[:at]
        elif way == 1 and data:
            data = data[: at - 1] + bytes([data[at - 1] ^ (1 << rng.randrange(8))]) + data[at:] if at else data
        elif way == 2:
            data = data[:at] + rng.choice(_ODD) + data[at:]
        elif way == 3:
            data = data[:at] + rng.randbytes(rng.choice((1, 4, 16, 300))) + data[at:]
        elif way == 4:
            data = data[:at] + data[at + rng.choice((1, 8, 100)) :]
        elif way == 5:
            data = data[:at] + data[at : at + 50] * rng.randint(2, 20) + data[at:]
        elif way == 6:
            stop = at + rng.choice((1, 2, 4, 8))
            data = data[:at] + rng.choice((b"\xff", b"\x00", b"\x7f", b"9")) * (stop - at) + data[stop:]
        else:
            data = rng.choice((b"", rng.randbytes(64), b"\x00" * 1000, data + data))
    return data


def damaged_text(text: str, rng: Random) -> bytes:
    """A text file that an editor, a transfer or a person has changed."""
    way = rng.random()
    if way < 0.25:
        return damaged(encoded(text), rng, 4)
    if way < 0.5:
        return _encoded_oddly(text, rng)
    lines = text.splitlines(keepends=True) or [""]
    _change_line(lines, rng.randrange(len(lines)), rng)
    return encoded("".join(lines))


def _encoded_oddly(text: str, rng: Random) -> bytes:
    way = rng.randrange(4)
    if way == 0:
        return b"\xef\xbb\xbf" + encoded(text)
    if way == 1:
        return encoded(text.replace("\n", "\r\n"))
    if way == 2:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-16-be")), "surrogatepass")
    return encoded(text).replace(b"e", b"\xe9", rng.randint(1, 3))


_LINES = ("---\n", "...\n", "%YAML 9.9\n", "%TAG ! x\n", "- a\n", "? \n", ": \n", "\x1b\n", "<<: *x\n")


def _change_line(lines: list[str], at: int, rng: Random) -> None:
    way = rng.randrange(9)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(at, lines[at])
    elif way == 2:
        lines[at] = lines[at].replace("  ", rng.choice(("\t", " ")), 1)
    elif way == 3:
        lines.insert(at, "# " + "x" * 1_000_000 + "\n")
    elif way == 4:
        lines.insert(at, rng.choice(_LINES))
    elif way == 5:
        lines.insert(at, f"zebra: {rng.choice((bomb(), merge_bomb()))}\n")
    elif way == 6:
        lines[at] = lines[at].replace(":", "", 1)
    elif way == 7:
        lines[at] = lines[at].replace(": ", ": &a ", 1)
    else:
        lines[:] = lines[at:] + lines[:at]


def special_files(folder: Path) -> None:
    """What a path may lead to besides a file; names as in `odd_values.PLACES`."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    (folder / "zeros").symlink_to("/dev/zero")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "closed").write_text("a: 1\n")
    (folder / "closed").chmod(0)
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / os.fsdecode(b"odd-\xff\xfe")).write_text("a: 1\n")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))


def replace_special(path: Path, rng: Random) -> None:
    """Put something in the place of a file that is no file."""
    path.unlink(missing_ok=True)
    way = rng.randrange(6)
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.symlink_to(path.name)
    elif way == 2:
        path.symlink_to("/dev/zero")
    elif way == 3:
        path.mkdir()
    elif way == 4:
        path.symlink_to("/proc/self/mem")
    else:
        path.symlink_to(rng.choice(("/dev/null", "nowhere", ".", "/proc/self/fd/0")))


def argument(text: str) -> str:
    """`text` as the shell can pass it: no null character, at most 100,000 bytes, and no other surrogates than Python
    makes of bytes."""
    short = text.replace("\0", "")[:30_000]
    return "".join(char if not "\ud800" <= char <= "\udfff" else "\udcff" for char in short)
