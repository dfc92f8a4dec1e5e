"""`model.json` of a checkpoint: its architecture."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object
from hpclm.core.records import from_dict
from hpclm.core.spec import ModelSpec


def read_model_card(folder: Path, hint: str) -> ModelSpec:
    """The architecture. Raises CheckpointError where there is none; `hint`: what to give instead."""
    raw = read_object(CheckpointFolder(folder).model)
    if raw is None:
        raise CheckpointError(f"{folder}: contains no model.json; {hint}")
    return from_dict(ModelSpec, raw)
