"""The members of a .nemo archive: a tar file, plain or gzipped, or the folder it was unpacked to."""

from __future__ import annotations

import gzip
import mmap
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file

_MAX_SMALL = 256 << 20
# Limits on what is unpacked: real weights hardly shrink under gzip, and the largest distributed checkpoints have some
# ten thousand files.
_MAX_MEMBERS = 50_000
_MOST_UNPACKED, _LEAST_UNPACKED = 64, 256 << 20
# Each map has an open file, and a distributed checkpoint has thousands of files.
_MAX_MAPS = 64


@dataclass(frozen=True)
class Member:
    """A file of the archive: where its bytes are."""

    name: str
    file: Path | None
    offset: int
    size: int


class Archive:
    """Members by name, with paths inside the archive; a context manager, since a gzipped
    archive is unpacked to a temporary file.

    Raises CheckpointError for a file that is not an archive, is truncated, or has links, devices or paths outside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spooled: IO[bytes] | None = None
        self._maps: dict[Path | None, mmap.mmap] = {}
        self._files: list[IO[bytes]] = []
        self.members = self._of_folder() if path.is_dir() else self._of_tar()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        for opened in self._files:
            opened.close()
        # Memory maps are not closed but released: a tensor made from one still uses it.
        self._maps.clear()

    def _of_folder(self) -> dict[str, Member]:
        found = {}
        root = self.path.resolve()
        # the cache of a model hub has a link for each file, to another folder of the same model
        allowed = next((one for one in root.parents if one.name.startswith("models--")), root)
        for file in sorted(self.path.rglob("*")):
            if file.is_file():
                if not file.resolve().is_relative_to(allowed):
                    raise CheckpointError(f"{file}: points outside the archive's folder; unpack the archive again")
                name = file.relative_to(self.path).as_posix()
                found[name] = Member(name, file, 0, file.stat().st_size)
        return found

    def _of_tar(self) -> dict[str, Member]:
        try:
            stream = self._plain()
            size = stream.seek(0, 2)
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                return dict(self._checked(tar, size))
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: does not exist; put the archive there, or give its path") from None
        except CheckpointError:
            raise
        except Exception as error:  # tarfile and gzip raise whatever their parts do
            raise CheckpointError(f"{self.path}: not a complete .nemo archive ({error}); copy it again") from error

    def _plain(self) -> IO[bytes]:
        """The tar's bytes; a gzipped one is unpacked to a file that is deleted when it is closed."""
        opened = open_file(self.path)
        self._files.append(opened)
        if opened.read(2) != b"\x1f\x8b":
            return opened
        self._spooled = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the archive
        self._files.append(self._spooled)
        opened.seek(0)
        most = max(_LEAST_UNPACKED, _MOST_UNPACKED * self.path.stat().st_size)
        with gzip.GzipFile(fileobj=opened) as unpacked:
            while block := unpacked.read(1 << 22):
                self._spooled.write(block)
                if self._spooled.tell() > most:
                    raise CheckpointError(
                        f"{self.path}: unpacks to more than {_MOST_UNPACKED} times its size, which no model does"
                    )
        self._spooled.flush()
        return self._spooled

    def _checked(self, tar: tarfile.TarFile, size: int) -> Iterator[tuple[str, Member]]:
        for count, one in enumerate(tar):
            if count >= _MAX_MEMBERS:
                raise CheckpointError(f"{self.path}: has more than {_MAX_MEMBERS} members, which no model has")
            path = PurePosixPath(one.name)
            if path.is_absolute() or ".." in path.parts or "\\" in one.name:
                raise CheckpointError(
                    f"{self.path}: contains {one.name!r}, a path outside the archive; do not trust it"
                )
            if one.isdir():
                continue
            if not one.isreg():
                raise CheckpointError(f"{self.path}: contains {one.name!r}, a link or device; do not trust it")
            if one.offset_data + one.size > size:
                raise CheckpointError(f"{self.path}: is truncated inside {one.name}; copy it again")
            name = str(path)
            yield name, Member(name, None, one.offset_data, one.size)

    def find(self, name: str) -> Member | None:
        """The member called `name`, in any folder; the one nearest the top."""
        fitting = [member for member in self.members.values() if PurePosixPath(member.name).name == name]
        return min(fitting, key=lambda member: member.name.count("/"), default=None)

    def ending(self, suffix: str) -> Member | None:
        """The first member whose name ends so (NeMo puts a hash in front of a file's name)."""
        return next((member for name, member in sorted(self.members.items()) if name.endswith(suffix)), None)

    def read(self, member: Member) -> bytes:
        """All bytes of a small member."""
        if member.size > _MAX_SMALL:
            raise CheckpointError(f"{self.path}: {member.name} is {member.size} bytes, too large for such a file")
        if not member.size:
            return b""
        return bytes(self.map(member)[member.offset : member.offset + member.size])

    def map(self, member: Member) -> mmap.mmap:
        """The file that contains the member, memory-mapped; the member begins at its `offset`.

        Raises CheckpointError for an empty file.
        """
        if not member.size:
            raise CheckpointError(f"{self.path}: {member.name} is empty; copy the archive again")
        if member.file not in self._maps:
            if len(self._maps) >= _MAX_MAPS:
                self._maps.pop(next(iter(self._maps)))
            # private mapping: writes do not change the file
            if member.file is not None:
                with open_file(member.file) as source:
                    self._maps[member.file] = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)
            else:
                whole = self._spooled or self._files[0]
                self._maps[None] = mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[member.file]
