"""A stage's result: written last of all, so a whole one means that the stage is complete."""

from __future__ import annotations

from typing import Any

from hpclm.core.errors import DamagedError
from hpclm.core.layout import StagePaths
from hpclm.core.sealed import read_sealed


def result_of(paths: StagePaths) -> dict[str, Any] | None:
    """The result; None where there is none, or none that can be used (`damage_of` tells)."""
    try:
        return read_sealed(paths.result)
    except (OSError, DamagedError):
        return None


def is_complete(paths: StagePaths) -> bool:
    return result_of(paths) is not None


def damage_of(paths: StagePaths) -> str | None:
    """What is wrong with a result that is there and cannot be used."""
    try:
        read_sealed(paths.result)
    except (OSError, DamagedError) as error:
        return str(error)
    return None


def set_aside(paths: StagePaths) -> None:
    """Rename a damaged result, so that the stage is finished again. Raises OSError, also where it cannot be read."""
    try:
        read_sealed(paths.result)
    except DamagedError:
        paths.result.replace(paths.result.with_name(f"{paths.result.name}.damaged"))
