"""A run whose folder was moved or copied: its paths as they are now.

The record says in which folder it was written (`root`). Where the run is found in another one, every path in it that
led there is changed; what is stored changes when the run is resumed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from hpclm.core.records import from_dict, to_dict

if TYPE_CHECKING:
    from hpclm.schedulers.jobs import StageJob


class Placed(Protocol):
    """A stage of a record."""

    @property
    def job(self) -> StageJob: ...


class Relocatable(Protocol):
    """A record of a run."""

    @property
    def root(self) -> str | None: ...
    @property
    def payload(self) -> str | None: ...
    @property
    def stages(self) -> Sequence[Placed]: ...


R = TypeVar("R", bound=Relocatable)


def as_found(record: R, root: Path) -> R:
    """A record just read, with its paths in `root`, where it is."""
    old, plain = written_in(record), cast(Any, record)
    if old is None or is_same(Path(old), root):
        return cast(R, dataclasses.replace(plain, root=old))
    stages = tuple(dataclasses.replace(stage, job=_job(stage.job, old, root)) for stage in plain.stages)
    payload = _beside(record.payload, old, root) if record.payload else None
    return cast(R, dataclasses.replace(plain, stages=stages, payload=payload, root=str(root)))


def written_in(record: Relocatable) -> str | None:
    """The folder in which a record was written; those of earlier versions tell it by their stages' folders."""
    if record.root is not None or not record.stages:
        return record.root
    return str(Path(record.stages[0].job.stage_dir).parent.parent)


def is_same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except (OSError, ValueError):  # a null character
        return False


def _job(job: StageJob, old: str, root: Path) -> StageJob:
    moved = from_dict(type(job), moved_in(to_dict(job), inside(old), str(root)))
    return dataclasses.replace(
        moved,
        payload=_beside(moved.payload, old, root),
        bad_node_list=_beside(moved.bad_node_list, old, root),
    )


def _beside(path: str, old: str, root: Path) -> str:
    """A path next to the run (a sweep's payload, the bad-node list), from where the run is now, if it came along."""
    if not Path(path).is_absolute() or path.startswith((f"{root}/", "/dev/")):
        return path
    there = Path(os.path.normpath(root / os.path.relpath(path, old)))
    return str(there) if there.exists() or not Path(path).exists() else path


def inside(folder: str) -> re.Pattern[str]:
    """The folder's path, alone or inside a text such as a mount."""
    return re.compile(r"(?<![^\s:,=\"'])" + re.escape(folder) + r"(?=$|[/:,\s\"'])")


def moved_in(value: Any, pattern: re.Pattern[str], new: str) -> Any:
    """Plain containers with what `pattern` finds in their texts replaced."""
    if isinstance(value, str):
        return pattern.sub(lambda _: new, value)
    if isinstance(value, dict):
        return {key: moved_in(item, pattern, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [moved_in(item, pattern, new) for item in value]
    return value
