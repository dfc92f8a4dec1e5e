"""What engine hf or PEFT has left in a folder: a checkpoint of a whole model, or an adapter for another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object
from hpclm.formats.checkpoint_pointers import pointed
from hpclm.formats.huggingface.architectures import ADAPTER_CONFIG


@dataclass(frozen=True)
class TunedFolder:
    """`base`: the folder of the model that an adapter belongs to; None for a whole model."""

    checkpoint: Path
    base: Path | None = None


def is_tuned(folder: Path) -> bool:
    """Whether engine hf has made it, or it is an adapter in PEFT's format."""
    try:
        place = pointed(folder, "best") or pointed(folder, "latest") or folder
    except CheckpointError:
        return False
    return CheckpointFolder(place).fine_tuned.is_file() or (place / ADAPTER_CONFIG).is_file()


def tuned_folder(folder: Path) -> TunedFolder | None:
    """None for a folder that neither has made. Of a stage's checkpoints the best, or else the newest.

    Raises CheckpointError for an adapter that does not name its model.
    """
    try:
        place = pointed(folder, "best") or pointed(folder, "latest") or folder
    except OSError:  # a name too long, a folder that cannot be read: whoever opens it says so
        return None
    config = place / ADAPTER_CONFIG
    if config.is_file():
        try:
            base = (read_object(config) or {}).get("base_model_name_or_path")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{config}: cannot be read ({error})") from None
        if not isinstance(base, str) or not Path(base).is_dir():
            raise CheckpointError(
                f"{config}: base_model_name_or_path is {str(base)[:200]!r}, which is no folder here; write the "
                "folder of the adapter's model into it"
            )
        return TunedFolder(place, Path(base))
    card = CheckpointFolder(place)
    return TunedFolder(place) if card.fine_tuned.is_file() and card.manifest.is_file() else None
