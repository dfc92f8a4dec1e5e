"""NeMo's prompt-learning archives: the tables of virtual tokens, one a task.

Written up to r1.16 as {'prompt_table': {'prompt_table.<task>.prompt_embeddings.weight': [virtual tokens, hidden], …}},
and later as {'prompt_table': {'prompt_table.<task>': …}, 'embeddings': …, and the encoder}. The encoder is only needed
to continue training; inference uses the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive
from hpclm.formats.format_guard import guarded
from hpclm.formats.nemo.gpt_weights import WEIGHTS, is_archive
from hpclm.formats.torch_pickles import TensorFacts, read_index

TABLE, WEIGHT, INDICES = "prompt_table", ".prompt_embeddings.weight", ".indices"


@guarded("a prompt-learning archive of NeMo")
def read_tables(archive: Archive) -> dict[str, TensorFacts]:
    """The table [virtual tokens, hidden] of each task. Raises CheckpointError where there is none."""
    member = archive.find(WEIGHTS)
    if member is None:
        raise CheckpointError(f"{archive.path}: contains no {WEIGHTS}; it is not a NeMo archive")
    table = _table(read_index(archive, member))
    if table is None:
        raise CheckpointError(
            f"{archive.path}: contains no prompt table; it is not a prompt-learning archive, "
            "or its training did not finish"
        )
    found = {}
    for name, facts in table.items():
        if isinstance(name, str) and isinstance(facts, TensorFacts) and not name.endswith(INDICES):
            task = name.removeprefix(f"{TABLE}.").removesuffix(WEIGHT).removesuffix(".weight")
            if len(facts.shape) != 2:
                raise CheckpointError(
                    f"{archive.path}: {name} has shape {facts.shape}, expected two dimensions; the file is damaged"
                )
            found[task] = facts
    if not found:
        raise CheckpointError(f"{archive.path}: its prompt table contains no task")
    return found


def _table(value: Any) -> dict[str, Any] | None:
    """The dictionary of that name, at any depth (or its entries at the top, as the first versions had them)."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get(TABLE), dict):
        found: dict[str, Any] = value[TABLE]
        return found
    flat = {key: item for key, item in value.items() if isinstance(key, str) and key.startswith(f"{TABLE}.")}
    if flat:
        return flat
    return next((inner for inner in map(_table, value.values()) if inner is not None), None)


def is_prompt_archive(path: str) -> bool:
    """Whether an archive at `path` contains prompts rather than a model."""
    if not is_archive(path):
        return False
    try:
        with Archive(Path(path)) as archive:
            read_tables(archive)
    except CheckpointError:
        return False
    return True
