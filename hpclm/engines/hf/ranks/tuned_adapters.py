"""An adapter and the model that it was trained on, put together and compared: what does not belong together is refused,
where PEFT would warn and leave tensors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object
from hpclm.engines.hf.ranks import adapters
from hpclm.engines.hf.ranks.base_models import digest, model_folder


def base_of(folder: Path) -> Path | None:
    """The folder of an adapter's model; None for a folder without an adapter.

    Raises CheckpointError where the model is not there, or not the one that the adapter was trained on.
    """
    config = read_object(folder / adapters.CONFIG)
    if config is None:
        return None
    name = str(config.get("base_model_name_or_path"))
    if not Path(name).is_dir():
        raise CheckpointError(
            f"{folder}: its model was {name}, which is not there; if it was moved, write its folder into "
            f"{adapters.CONFIG} (base_model_name_or_path)"
        )
    base = model_folder(name)
    wanted = (read_object(CheckpointFolder(folder).fine_tuned) or {}).get("base_digest")
    if wanted not in (None, digest(base)):
        raise CheckpointError(
            f"{base}: its weights are not those that {folder} was trained on; give the model as it was then"
        )
    return base


def attached(model: Any, folder: Path, device: str) -> Any:
    """PEFT's model of both. Raises CheckpointError for an adapter whose tensors are not the model's."""
    from peft import PeftModel, get_peft_model_state_dict

    file = folder / adapters.WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{folder}: has no {adapters.WEIGHTS}; pickles (adapter_model.bin) are not read")
    tuned: Any = PeftModel.from_pretrained(model, str(folder), torch_device=device).eval()
    with safe_open(str(file), framework="pt") as stored:
        # earlier adapters of ours have the longer name of DoRA's magnitudes, which PEFT reads, too
        names: list[str] = stored.keys()
        there = {adapters.saved_name(name) for name in names}
    wanted = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    for name in sorted(wanted ^ there):
        what = "lacks" if name in wanted else "has"
        raise CheckpointError(f"{file}: {what} {name}, so it is no adapter for this {type(model).__name__}")
    return tuned
