"""A run whose folder was moved or copied: its paths as they are now.

The record says in which folder it was written (`root`). Where the run is found in another one, every path in it that
led there is changed; what is stored changes when the run is resumed.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpclm.core.errors import HpclmError
from hpclm.core.files import read_object
from hpclm.core.layout import RunPaths
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from hpclm.runs.record import Record, Run
    from hpclm.schedulers.jobs import StageJob


def as_found(record: Record, root: Path) -> Record:
    """A record just read, with its paths in `root`, where it is."""
    old = written_in(record)
    if old is None or _is_same(Path(old), root):
        return dataclasses.replace(record, root=old)
    stages = tuple(dataclasses.replace(stage, job=_job(stage.job, old, root)) for stage in record.stages)
    payload = _beside(record.payload, old, root) if record.payload else None
    return dataclasses.replace(record, stages=stages, payload=payload, root=str(root))


def written_in(record: Record) -> str | None:
    """The folder in which a record was written; those of earlier versions tell it by their stages' folders."""
    if record.root is not None or not record.stages:
        return record.root
    return str(Path(record.stages[0].job.stage_dir).parent.parent)


def original(run: Run) -> Path | None:
    """Where the run is that this one is a copy of; None for one that is where it was, or that was moved."""
    there = _stored_root(run)
    if there is None or _is_same(Path(there), run.paths.root):
        return None
    same = (read_object(RunPaths(Path(there)).record) or {}).get("run") == run.record.run
    return Path(there) if same else None


def settle(run: Run) -> Run:
    """Make the folder that the run is in its own: specs and record are written again where they lead elsewhere.

    Raises HpclmError and OSError.
    """
    stored = _stored_root(run)
    if stored is None or stored == run.record.root:
        return run
    for stage in run.record.stages:
        path = run.paths.stage(stage.name).spec
        raw = read_sealed(path)
        if raw is None:
            raise HpclmError(f"{path}: missing")
        write_sealed(path, _walked(raw, _inside(stored), str(run.paths.root)))
    return run.save(run.record)


def _stored_root(run: Run) -> str | None:
    from hpclm.runs.record import stored_record

    return written_in(stored_record(run.paths))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


def _job(job: StageJob, old: str, root: Path) -> StageJob:
    moved = from_dict(type(job), _walked(to_dict(job), _inside(old), str(root)))
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


def _inside(folder: str) -> re.Pattern[str]:
    """The folder's path, alone or inside a text such as a mount."""
    return re.compile(re.escape(folder) + r"(?=$|[/:,\s\"'])")


def _walked(value: Any, pattern: re.Pattern[str], new: str) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda _: new, value)
    if isinstance(value, dict):
        return {key: _walked(item, pattern, new) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_walked(item, pattern, new) for item in value]
    return value
