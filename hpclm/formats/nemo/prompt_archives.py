"""What the configuration in an archive of trained prompts says. Only for the login node: it needs PyYAML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.formats.archive import Archive
from hpclm.formats.format_guard import guarded
from hpclm.formats.nemo.config_writing import SEMANTICS
from hpclm.formats.nemo.model_config import read_config
from hpclm.formats.nemo.prompt_tables import read_tables


@dataclass(frozen=True)
class TrainedTask:
    """A task that an archive has prompts for: its virtual tokens, and the task under whose name they are stored."""

    count: int
    stored_as: str


@guarded("a prompt-learning archive of NeMo")
def language_model(path: str) -> str | None:
    """The model that an archive's prompts were trained on, as NeMo wrote it there; a relative one from the archive's
    folder. Raises CheckpointError."""
    with Archive(Path(path)) as archive:
        return language_model_of(read_config(archive), path)


def language_model_of(config: dict[str, Any], path: str) -> str | None:
    """The same, from the configuration in the archive at `path`."""
    written = config.get("language_model_path")
    return str(Path(path).parent / written) if isinstance(written, str) and written else None


@guarded("a prompt-learning archive of NeMo")
def semantics_of(path: str) -> str | None:
    """How rows were read when an archive's prompts were trained: `nemo-1.21` if a release up to r1.21 wrote it, whose
    tokenizers left out the white space beside virtual tokens; None where it does not say. Raises CheckpointError."""
    with Archive(Path(path)) as archive:
        config = read_config(archive)
    if isinstance(config.get(SEMANTICS), str):
        return str(config[SEMANTICS])
    release = re.match(r"(\d{1,4})\.(\d{1,4})", str(config.get("nemo_version") or ""))
    if release is None:
        return None
    return "nemo-1.21" if (int(release[1]), int(release[2])) < (1, 22) else "nemo"


@guarded("a prompt-learning archive of NeMo")
def trained_tasks(path: str) -> dict[str, TrainedTask]:
    """The tasks of an archive by name. Raises CheckpointError.

    From r1.17 on NeMo stores one table, under the name of the first task that it was trained for, and uses it for all
    of them (megatron_base_prompt_learning_model.py, init_prompt_encoder).
    """
    with Archive(Path(path)) as archive:
        tables, config = read_tables(archive), read_config(archive)
    found = {task: TrainedTask(facts.shape[0], task) for task, facts in tables.items()}
    together = config.get("new_tasks")
    if len(found) == 1 and isinstance(together, list):
        (only,) = found.values()
        found |= {str(task): only for task in together if str(task) not in found}
    return found
