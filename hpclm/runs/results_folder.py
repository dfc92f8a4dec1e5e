"""Where results are written: nothing of the user's is ever replaced.

A folder of results has a marker with the run and every file that a collect wrote there. Only such a folder, of the same
run and with nothing else in it, is replaced; whoever collects at the same time gets one whole folder as well.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from hpclm.core.errors import HpclmError
from hpclm.core.files import read_object, umask, write_json, write_text
from hpclm.core.locks import exclusive

MARKER = ".hpclm-collect.json"
_WAIT_S = 300.0


@contextmanager
def building(folder: Path, run: str, own: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` at the end; without an end it is removed.

    Args:
        own: the run's own results folder, where a collect of an earlier version left no marker.

    Raises HpclmError where `folder` is not one that a collect of this run made.
    """
    if folder.is_symlink():
        folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        # a project's folder hands its group on
        made.chmod(0o777 & ~umask() | made.stat().st_mode & stat.S_ISGID)
        yield made
        write_json(made / MARKER, {"run": run, "files": sorted(_files(made))})
        with _alone(folder):
            _refuse_foreign(folder, run, own)
            _take_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def refuse_foreign(folder: Path, run: str, own: Path) -> None:
    """Raises HpclmError unless `folder` is missing, empty, or the results of an earlier collect of this run alone."""
    if folder.parent.is_dir():
        with _alone(folder):
            _refuse_foreign(folder, run, own)


def _alone(folder: Path) -> AbstractContextManager[bool]:
    return exclusive(folder.parent, f"{folder}: other commands write there; try again", wait_s=_WAIT_S)


def _refuse_foreign(folder: Path, run: str, own: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise HpclmError(f"{folder} is not a folder; give another with --out")
    present = _files(folder)
    if not present and not any(folder.iterdir()):
        return
    marker = read_object(folder / MARKER) or {}
    written = marker.get("files") if marker.get("run") == run else None
    if written is None and folder == own and (read_object(folder / "summary.json") or {}).get("run") == run:
        return
    if not isinstance(written, list):
        raise HpclmError(f"{folder} was not made by a collect of run {run}; choose a new or empty folder with --out")
    others = sorted(present - {*map(str, written), MARKER})
    if others:
        raise HpclmError(
            f"{folder} contains {others[0]}, which `hpclm collect` did not write; move it, or choose another --out"
        )


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def _take_place(made: Path, folder: Path) -> None:
    """Rename it over the earlier results, which are moved away first."""
    away = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    earlier = away / "earlier"
    try:
        if folder.exists():
            folder.rename(earlier)
        try:
            made.rename(folder)
        except BaseException:
            if earlier.exists():
                earlier.rename(folder)
            raise
    finally:
        shutil.rmtree(away, ignore_errors=True)


def writable(path: Path) -> Path:
    """The file that writing to `path` changes: what a link points to.

    Raises HpclmError where that cannot be written.
    """
    path = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - the last part may be a link
    try:
        target = path.resolve() if path.is_symlink() else path
        if target.is_dir():
            raise HpclmError(f"{path} is a folder; give a file with --pred-file")
        there = target if target.exists() else next(one for one in target.parents if one.exists())
        if there != target and not there.is_dir():
            raise HpclmError(f"{path}: {there} is not a folder; choose another --pred-file")
        if not os.access(there, os.W_OK) or (there.is_dir() and not os.access(there, os.X_OK)):
            raise HpclmError(f"{path}: {there} cannot be written to; choose another --pred-file")
    except (OSError, RuntimeError) as error:
        raise HpclmError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    return target


def write_plain(target: Path, text: str) -> bool:
    """Write a file: one whole file in place of another, but into a device or a pipe. Returns whether it is a file."""
    try:
        kind = stat.S_IFMT(target.stat().st_mode)
    except OSError:
        kind = stat.S_IFREG
    if kind == stat.S_IFREG:
        write_text(target, text)
        return True
    with target.open("w", encoding="utf-8") as stream:
        stream.write(text)
    return False
