"""Libraries without what they would load if it were there, and is not needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Meanwhile modules of these names are not found, unless they are loaded already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment] # what the import system takes for: not there
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
