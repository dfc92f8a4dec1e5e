"""Tar archives, and what an archive should not contain."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from random import Random


def tarred(members: Mapping[str, bytes], extra: list[tarfile.TarInfo] | None = None, *, front: bool = False) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info in extra or [] if front else []:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name if name.startswith(("/", ".", "\x1b")) else f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra or [] if not front else []:
            tar.addfile(info)
    return stream.getvalue()


def odd_members(rng: Random) -> list[tarfile.TarInfo]:
    way = rng.randrange(9)
    if way == 0:
        return [_info("./link", tarfile.SYMTYPE, "model_config.yaml")]
    if way == 1:
        return [_info("./link", tarfile.LNKTYPE, "/etc/passwd")]
    if way == 2:
        return [_info("./device", rng.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)))]
    if way == 3:
        return [
            _info(
                rng.choice(("/etc/x", "../x", "a/../../x", "a\\b", "\x1b[31m", "\x9b", "\udcff", "", "a\nb", "é" * 200))
            )
        ]
    if way == 4:
        return [_info(f"./member-{number}") for number in range(10_000)]
    if way == 5:
        return [_info("./a/" * 60 + "x")]
    if way == 6:
        huge = _info("./huge")
        huge.pax_headers = {"size": rng.choice(("9" * 30, "-1", "x", "1e5", "9" * 5000)), "path": "./huge"}
        return [huge]
    if way == 7:
        sparse = _info("./sparse")
        sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 20}
        return [sparse]
    return [_info("./odd", rng.choice((b"Z", b"S", b"V", b"g", b"x", b"L", b"7")))]


def _info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def odd_header(data: bytes, rng: Random) -> bytes:
    """With one field of one header changed; its checksum is right again."""
    starts = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not starts:
        return data
    at = rng.choice(starts)
    header = bytearray(data[at : at + 512])
    first, length = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)))
    value = rng.choice(
        (b"\xff" * 160, b"\x80" + b"\x00" * 160, b"7" * 160, b"\x80" + b"\x7f" * 160, b"-1" + b" " * 160, b"x" * 160)
    )
    header[first : first + length] = value[:length]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


def zipped(data: bytes, rng: Random) -> bytes:
    """The same gzipped, whole or not, or a bomb of zeros."""
    whole = gzip.compress(data, 1)
    way = rng.randrange(6)
    if way == 0:
        return whole
    if way == 1:
        return whole[: rng.randint(2, len(whole))]
    if way == 2:
        at = rng.randrange(len(whole))
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    if way == 3:
        return whole + rng.choice((b"\x00" * 100, b"junk", whole, b"\x1f\x8b"))
    if way == 4:
        return b"\x1f\x8b\x08" + rng.randbytes(40)
    return (
        gzip.compress(data + bytes(200_000_000), 1)
        if rng.random() < 0.2
        else gzip.compress(data + bytes(20_000_000), 1)
    )
