"""What a command does with a run that is not where it was: see `relocation`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from hpclm.core.engine_spec import EngineSpec
from hpclm.core.errors import DamagedError, HpclmError
from hpclm.core.files import read_object
from hpclm.core.layout import RunPaths
from hpclm.core.processes import user_name
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.stage_specs import class_of
from hpclm.runs.record import Run, stored_record
from hpclm.runs.relocation import inside, is_same, moved_in, written_in


def refuse_others(run: Run, what: str) -> None:
    """Raises HpclmError for another user's run: its jobs are theirs. A copy belongs to whoever made it."""
    me = user_name()
    if run.record.user in ("", me) or original(run) is not None or os.geteuid() == 0:
        return
    raise HpclmError(
        f"run {run.record.run} belongs to {run.record.user}, whose jobs these are: only they can {what} it; copy its "
        f"folder to continue in one of your own"
    )


def original(run: Run) -> Path | None:
    """Where the run is that this one is a copy of; None for one that is where it was, or that was moved."""
    there = _stored_root(run)
    if there is None or is_same(Path(there), run.paths.root):
        return None
    same = (read_object(RunPaths(Path(there)).record) or {}).get("run") == run.record.run
    return Path(there) if same else None


def settle(run: Run) -> Run:
    """Make the folder that the run is in its own: specs and record are written again where they lead elsewhere, and a
    spec that is damaged or missing as the run's plan has it.

    Raises HpclmError and OSError.
    """
    changed = False
    # the run's own code reads its specs, and that of an earlier version knows no checksums
    seals = (run.payload / "hpclm" / "core" / "sealed.py").is_file()
    for stage in run.record.stages:
        paths = run.paths.stage(stage.name)
        try:
            raw = read_sealed(paths.spec)
        except DamagedError:
            raw = None
        if raw is None:
            write_sealed(paths.spec, _planned_spec(run, stage.name), seal=seals)
            continue
        written = str(Path(str(raw.get("stage_dir", paths.root))).parent.parent)
        if not is_same(Path(written), run.paths.root):
            changed = True
            write_sealed(paths.spec, moved_in(raw, inside(written), str(run.paths.root)), seal=seals)
    if not changed and _stored_root(run) == run.record.root:
        return run
    return run.save(dataclasses.replace(run.record, user=user_name()))


def _planned_spec(run: Run, stage: str) -> dict[str, Any]:
    """What a stage's spec was when it was written. Raises HpclmError where the plan does not tell."""
    from hpclm.planning.specs import placed

    spec = run.paths.stage(stage).spec
    plan = read_object(run.paths.plan) or {}
    raw = next((one.get("spec") for one in plan.get("stages") or [] if one.get("name") == stage), None)
    kind: type[EngineSpec] = class_of(raw)
    try:
        return to_dict(placed(from_dict(kind, raw), run.record.run, run.paths))
    except (ValueError, AttributeError) as error:
        raise HpclmError(
            f"{spec}: damaged, and {run.paths.plan} does not have it ({error}); start a new run from the checkpoints"
        ) from None


def _stored_root(run: Run) -> str | None:
    return written_in(stored_record(run.paths))
