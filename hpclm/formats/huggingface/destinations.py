"""Where fetched files go: the Hub's own cache, or a plain folder that is complete or not there."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from hpclm.core.errors import CheckpointError, HpclmError
from hpclm.core.files import write_json, write_text
from hpclm.core.records import to_dict
from hpclm.formats.huggingface.folder_check import RECORD, FetchRecord, record_of
from hpclm.formats.huggingface.hub_files import HubFile
from hpclm.formats.huggingface.hub_transfer import Target

_GIB = 1 << 30


class Destination(Protocol):
    """`place`: the folder that is filled, by one command at a time; `folder`: where the files are afterwards."""

    place: Path
    folder: Path

    def targets(self, files: Iterable[HubFile]) -> list[Target]:
        """Where each file goes while it is fetched."""

    def ready(self, target: Target) -> None:
        """A file has arrived."""

    def view(self) -> Path:
        """The folder that has all files before `finish`."""

    def finish(self, files: Sequence[HubFile]) -> None:
        """Everything has arrived."""


class Cache:
    """The Hub's cache: files by their digests in `blobs`, links to them in `snapshots`, branches and tags in `refs`
    (huggingface_hub, docs: "Understand caching"). The links are made by the Hub's client: `link(name)`."""

    def __init__(self, storage: Path, commit: str, revision: str, link: Callable[[str], object]) -> None:
        self.place, self.folder = storage, storage / "snapshots" / commit
        self._commit, self._revision, self._link = commit, revision, link
        self._names: dict[Path, set[str]] = defaultdict(set)

    def targets(self, files: Iterable[HubFile]) -> list[Target]:
        made = {}
        for file in files:
            path = self.place / "blobs" / file.digest
            self._names[path].add(file.name)
            made[path] = Target(file, path)
        return list(made.values())

    def ready(self, target: Target) -> None:
        for name in self._names[target.path]:
            self._link(name)

    def view(self) -> Path:
        return self.folder

    def finish(self, files: Sequence[HubFile]) -> None:
        if self._revision != self._commit:
            write_text(self.place / "refs" / self._revision, self._commit)


class Plain:
    """A folder of files, made under another name beside it."""

    def __init__(self, out: Path, record: Callable[[Sequence[HubFile]], FetchRecord]) -> None:
        self.folder = out
        self.place = out.with_name(f".{out.name}.fetching")
        self._record = record

    def targets(self, files: Iterable[HubFile]) -> list[Target]:
        return [Target(file, self.place / file.name) for file in files]

    def ready(self, target: Target) -> None:
        pass

    def view(self) -> Path:
        return self.place

    def finish(self, files: Sequence[HubFile]) -> None:
        wanted = {self.place / file.name for file in files}
        for path in self.place.rglob("*"):
            if path not in wanted and not path.is_dir():
                path.unlink()  # of an earlier, interrupted fetch of something else
        write_json(self.place / RECORD, to_dict(self._record(files)))
        self.place.rename(self.folder)


def refuse_existing(out: Path) -> None:
    """Raises HpclmError for an `--out` that something else is in."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise HpclmError(f"{out}: already exists; give another name")
    if out.is_dir() and any(out.iterdir()) and record_of(out) is None:
        raise HpclmError(f"{out}: already exists, and was not made by `fetch`; give another name")


def is_there(out: Path, kind: str, repo: str, commit: str, files: Iterable[HubFile]) -> bool:
    """Whether a folder was made of the same files. Raises CheckpointError where it was made of others."""
    record = record_of(out)
    if record is None:
        return False
    if (record.kind, record.repo, record.revision) != (kind, repo, commit):
        raise CheckpointError(f"{out}: has {record.repo} at {record.revision}; give another name, or remove it")
    if not {file.name for file in files} <= {file.name for file in record.files}:
        raise CheckpointError(f"{out}: has {repo} with fewer files; give another name, or remove it")
    return True


def refuse_full(place: Path, targets: Iterable[Target], hint: str) -> None:
    """Raises HpclmError where the file system has less room than what is still to come."""
    needed = sum(target.missing for target in targets)
    present = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(present).free
    if needed > free:
        raise HpclmError(
            f"{place}: {needed / _GIB:,.1f} GiB are still to come, and {free / _GIB:,.1f} GiB are free there; make "
            f"room, or choose another file system ({hint})"
        )
