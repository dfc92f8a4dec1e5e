"""Modules of the payload from one file, which a rank opens once.

Thousands of ranks that start at once would each look for and open hundreds of files in the run's folder, on a file
system that answers all of them from one server of names. Standard library only: it runs before anything is imported.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

BUNDLE = "modules.json.zlib"
_BYTES = "latin-1"  # each byte as one character, whatever a file's own encoding


def bundle(sources: Mapping[str, bytes]) -> bytes:
    """The file of modules: their paths in the payload, as `hpclm/core/files.py`, and their text."""
    texts = {path: source.decode(_BYTES) for path, source in sorted(sources.items())}
    return zlib.compress(json.dumps(texts).encode(), 6)


def import_from_bundle(payload: Path) -> bool:
    """Find modules in the payload's bundle first.

    Its folder stays where it is in sys.path: processes that are started import from there, before anything that is
    installed. Tracebacks and data files beside modules find it, too.

    Returns False, with nothing changed, where there is no bundle.
    """
    try:
        texts: dict[str, str] = json.loads(zlib.decompress((payload / BUNDLE).read_bytes()))
    except FileNotFoundError:
        return False
    sys.meta_path.insert(
        0, _Finder({str(payload / path): text.encode(_BYTES) for path, text in texts.items()}, str(payload))
    )
    return True


class _Finder:
    """Looks a module up among the bundle's paths."""

    def __init__(self, sources: dict[str, bytes], payload: str) -> None:
        self._sources, self._payload = sources, payload

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        place = f"{self._payload}/{name.replace('.', '/')}"
        for file, inside in ((f"{place}/__init__.py", [place]), (f"{place}.py", None)):
            if file in self._sources:
                loader = _Loader(name, file, self._sources)
                return spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)
        return None


class _Loader(SourceFileLoader):
    """A module's source from the bundle, and neither read nor written as bytecode."""

    def __init__(self, name: str, path: str, sources: dict[str, bytes]) -> None:
        super().__init__(name, path)
        self._sources = sources

    def get_data(self, path: str) -> bytes:
        found = self._sources.get(path)
        return super().get_data(path) if found is None else found

    def path_stats(self, path: str) -> Mapping[str, float]:
        raise OSError(f"{path}: in a bundle")  # so that no bytecode is looked for
