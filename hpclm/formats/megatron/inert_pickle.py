"""Pickles read for what they describe: every class in them becomes an object that does nothing but keep its state."""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.torch_pickles import refuse_bombs

MOST = 1 << 30
# Types without code of their own.
_KNOWN: dict[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class Inert:
    """An instance of a class that is not loaded.

    Attributes:
        origin: module and name of the class, or of what was called.
        given: the arguments that it was made with.
        state: its attributes.
    """

    origin = ("", "")

    def __init__(self, *given: Any, **more: Any) -> None:
        self.given, self.state = given, dict[str, Any]()

    def __new__(cls, *given: Any, **more: Any) -> Inert:
        made = super().__new__(cls)
        made.given, made.state = given, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"state": state}

    def __call__(self, *given: Any, **more: Any) -> Inert:
        return Inert()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Of a mapping's subclass; not kept."""

    def append(self, value: Any) -> None:
        """Of a list's subclass; not kept."""

    def extend(self, values: Any) -> None:
        """The same."""

    add = append


def inert(module: str, name: str) -> type[Inert]:
    """What stands for a class or function of this name."""
    return type(name.rpartition(".")[2] or "Inert", (Inert,), {"origin": (module, name)})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        return inert(module, name)

    def persistent_load(self, pid: Any) -> None:
        """A tensor's bytes, which are not read."""


def read(text: bytes, where: str) -> Any:
    """What the pickle holds. Raises CheckpointError for one that is damaged or asks for too much."""
    if len(text) > MOST:
        raise CheckpointError(f"{where}: is larger than {MOST >> 30} GiB")
    try:
        refuse_bombs(text)
        return _Unpickler(io.BytesIO(text)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{where}: is damaged, or no pickle ({type(error).__name__})") from None
