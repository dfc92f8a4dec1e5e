"""One guard for every reader of a format: whatever fails inside means that the file is damaged or something else.

`--debug` shows the failure itself, so that a mistake of our own in a reader is not hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from hpclm.core.errors import CheckpointError, HpclmError

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")
_SHOWN = 200


def guarded(what: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """A decorator for a reader whose first argument is the path, or has it as `path`; `what`: what it reads.

    Errors of hpclm and of the file system pass as they are; any other becomes a CheckpointError that names the file.
    """

    def decorate(reader: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(reader)
        def read(source: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return reader(source, *args, **kwargs)
            except (HpclmError, OSError):
                raise
            except Exception as error:
                raise damaged(getattr(source, "path", source), what, error) from error

        return read

    return decorate


def damaged(where: object, what: str, error: BaseException) -> CheckpointError:
    """The message for a failure inside a file."""
    try:
        why = (str(error).splitlines() or [""])[0][:_SHOWN]
    except ValueError:  # a number of thousands of digits
        why = ""
    shown = f"{type(error).__name__}: {why}" if why else type(error).__name__
    return CheckpointError(f"{where}: damaged, or not {what} ({shown})")
