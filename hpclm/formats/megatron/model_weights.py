"""A checkpoint of Megatron-LM, in either of its formats: where it is, and the tensors of its model."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file
from hpclm.core.spec import ModelSpec
from hpclm.formats.archive import Archive
from hpclm.formats.format_guard import guarded
from hpclm.formats.megatron import expected_tensors, rank_files
from hpclm.formats.megatron.distributed_index import METADATA, stored_tensors
from hpclm.formats.megatron.saved_arguments import COMMON, model_spec
from hpclm.formats.megatron.stacked_tensors import unstacked
from hpclm.formats.stored_weights import Weight

LATEST = "latest_checkpointed_iteration.txt"
_MOST_LATEST = 16
__all__ = ["COMMON", "LATEST", "is_megatron", "iteration_folder", "read_model", "read_weights"]


def iteration_folder(path: Path) -> Path | None:
    """The folder of a checkpoint: itself, or the latest in a folder of them. None: there is none."""
    if _is_one(path):
        return path
    try:
        with open_file(path / LATEST) as opened:
            text = opened.read(_MOST_LATEST).decode(errors="replace").strip()
    except OSError:
        return None
    if text != "release" and not (text.isdecimal() and text.isascii() and len(text) < _MOST_LATEST):
        return None
    found = path / (text if text == "release" else f"iter_{text.zfill(7)}")
    return found if _is_one(found) else None


def is_megatron(path: str) -> bool:
    """Whether a path has a checkpoint of Megatron-LM (decided by the files)."""
    return iteration_folder(Path(path)) is not None


def _is_one(folder: Path) -> bool:
    if (folder / METADATA).is_file() and (folder / COMMON).is_file():
        return True
    return any(one.is_file() for name in rank_files.NAMES for one in folder.glob(f"mp_rank_*/{name}"))


def read_model(archive: Archive, vocab_size: int | None = None) -> ModelSpec:
    """The model of a checkpoint's folder; `vocab_size` as in saved_arguments. Raises CheckpointError."""
    member = archive.find(COMMON) or next((one for _, one in rank_files.rank_files(archive)), None)
    if member is None:
        raise CheckpointError(f"{archive.path}: is no checkpoint of Megatron-LM")
    return model_spec(archive, member, vocab_size)


@guarded("a checkpoint of Megatron-LM")
def read_weights(archive: Archive, model: ModelSpec) -> dict[str, Weight]:
    """Every tensor of the model under hpclm's name. Raises CheckpointError."""
    if archive.find(METADATA) is not None:
        weights = unstacked(stored_tensors(archive))
    else:
        weights = rank_files.read_weights(archive, model.num_attention_heads, gated=model.gated)
    expected_tensors.check(str(archive.path), model, weights)
    return weights
