"""What the ranks run: pure Python copied into the run, so that an image needs an engine but not hpclm.

A run keeps the code it was submitted with, even if the checkout changes later. Payloads of the same content
are shared: their files are hard links of one copy, stored under a hash of the content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpclm.core.bundled_modules import BUNDLE, bundle
from hpclm.core.errors import HpclmError
from hpclm.core.files import umask
from hpclm.core.registries import ALL
from hpclm.core.registry import PLUGINS_FILE
from hpclm.core.shipped import launch_folder

PACKAGES = ("hpclm",)
# Queries the driver on the nodes; a cluster without GPUs does not need it.
_OPTIONAL = ("pynvml",)
SUPERVISE = "supervise.sh"
_SKIPPED_FOLDERS = ("__pycache__", "tests")
_SKIPPED_SUFFIXES = (".pyc", ".so")


def stage_payload(target: Path, shared: Path | None = None) -> None:
    """Create the payload at `target`, which must not exist.

    Args:
        shared: folder of payloads that many runs link to; None: a copy of its own. Where the file system has no hard
            links the payload is copied as well.

    Raises HpclmError when a package that must go in is not installed.
    """
    files = dict(_files())
    if shared is None:
        _write(files, target)
        return
    try:
        _stage_shared(files, target, shared)
    except OSError:
        # another user's payload that may not be read, a full disk: a copy of its own, or that error again
        shutil.rmtree(target, ignore_errors=True)
        _write(files, target)


def _stage_shared(files: dict[str, bytes | Path], target: Path, shared: Path) -> None:
    kept = shared / _digest(files)
    if not kept.is_dir():
        shared.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=shared, prefix=".building-"))
        building.chmod(0o755 & ~umask())
        _write(files, building / "payload")
        try:
            (building / "payload").rename(kept)
        except OSError:  # another process created it in the meantime
            if not kept.is_dir():
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(kept, target, copy_function=_link)


def _files() -> Iterator[tuple[str, bytes | Path]]:
    """Every file of a payload: its path, and its content or where that is."""
    yield f"launch/{SUPERVISE}", launch_folder() / SUPERVISE
    plugins = _plugins()
    packages = dict.fromkeys(
        location.partition(":")[0].partition(".")[0] for one in plugins.values() for location in one.values()
    )
    for name in (*PACKAGES, *packages, *_OPTIONAL):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            if name in _OPTIONAL:
                continue
            raise HpclmError(f"{name} is not installed; fix: `pip install {name}`")
        origin = Path(spec.origin)
        if not spec.submodule_search_locations:
            yield origin.name, origin
            continue
        for path in sorted(origin.parent.rglob("*")):
            inner = path.relative_to(origin.parent)
            if path.is_file() and _belongs(inner):
                yield f"{name}/{inner}", path
    yield PLUGINS_FILE, json.dumps(plugins, indent=1, sort_keys=True).encode()


def _plugins() -> dict[str, dict[str, str]]:
    """The entries that other packages have added to each registry."""
    found = {
        one.group: {name: place for name, place in one.locations().items() if not one.is_builtin(name)} for one in ALL
    }
    return {group: entries for group, entries in found.items() if entries}


def _belongs(inner: Path) -> bool:
    """Whether a package's file is included: code and data, without caches, tests and
    what was compiled for this machine."""
    return (
        not any(part in _SKIPPED_FOLDERS for part in inner.parts[:-1])
        and inner.suffix not in _SKIPPED_SUFFIXES
        and not inner.name.startswith("test_")
        and inner.name != "conftest.py"
    )


def _digest(files: dict[str, bytes | Path]) -> str:
    total = hashlib.sha256()
    for place, content in sorted(files.items()):
        data = _content(content)
        total.update(f"{place}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()[:24]


def _with_bundle(files: dict[str, bytes | Path]) -> dict[str, bytes | Path]:
    """The files, and one more with all modules in it."""
    modules = {place: content for place, content in files.items() if place.endswith(".py")}
    return {**files, BUNDLE: bundle({place: _content(one) for place, one in modules.items()})}


def _content(one: bytes | Path) -> bytes:
    return one if isinstance(one, bytes) else one.read_bytes()


def _write(files: dict[str, bytes | Path], target: Path) -> None:
    target.mkdir(parents=True, mode=0o755)
    for place, content in _with_bundle(files).items():
        path = target / place
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)
        path.chmod(0o444 & ~umask())  # runs share it: it must not be changed in place


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target
