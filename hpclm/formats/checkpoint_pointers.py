"""Which of a stage's checkpoints is the best and which the newest: what the pointer files say, or else the manifests.

Without torch: login node and ranks ask the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object
from hpclm.core.logging import log
from hpclm.formats.checkpoint_manifest import read_manifest

Which = Literal["best", "latest"]
_NAME = re.compile(r"step-(\d{8,15})")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders of a stage in the order of their steps, complete ones only."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted((path for path in found if CheckpointFolder(path).manifest.exists()), key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def pointed(folder: Path, which: Which) -> Path | None:
    """The checkpoint of a stage's folder that a pointer names; None where there is no such pointer.

    A pointer that cannot be read is replaced by what the manifests say. Raises CheckpointError where neither helps.
    """
    paths = CheckpointFolder(folder)
    pointer = paths.best if which == "best" else paths.latest
    if not pointer.exists():
        return None
    name = (read_object(pointer) or {}).get("checkpoint")
    if isinstance(name, str) and Path(name).name == name:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{pointer} points to {name}, which does not exist")
        return folder / name
    steps = checkpoints_in(folder)
    if not steps:
        raise CheckpointError(f"{pointer}: cannot be read, and there is no other checkpoint in {folder}")
    found = _best_of(steps) if which == "best" else steps[-1]
    log(f"{pointer} cannot be read; by the manifests it is {found.name}")
    return found


def _best_of(steps: list[Path]) -> Path:
    """The checkpoint with the lowest val_loss by the newest manifest that tells it; the newest where none does."""
    by_step = {step_of(path): path for path in steps}
    for path in reversed(steps):
        try:
            ranked = read_manifest(path).state.get("best")
        except CheckpointError:
            continue
        for entry in ranked if isinstance(ranked, list) else []:
            if isinstance(entry, list) and len(entry) == 2 and entry[1] in by_step:
                return by_step[entry[1]]
    return steps[-1]
