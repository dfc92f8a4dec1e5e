"""A model that answers, whole on this rank, with the adapter that a stage has tuned for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpclm.core.fine_tune_spec import HuggingFaceSpec
from hpclm.engines.hf.ranks.base_models import model_folder
from hpclm.engines.hf.ranks.hf_loading import empty_model, load_tokenizer, weights_of
from hpclm.engines.hf.ranks.precision import dtype_of
from hpclm.engines.hf.ranks.tuned_adapters import attached, base_of


@dataclass
class Tuned:
    """A model, with its adapter if it has one, whole on this rank.

    Attributes:
        folder: of the checkpoint or the model.
        model: what generates; `base`: transformers' model in it.
        virtual: the virtual tokens of a prompt method, [v, h].
    """

    folder: Path
    model: Any
    base: Any
    tokenizer: Any
    virtual: torch.Tensor | None = None


def load(
    base: str, how: HuggingFaceSpec, precision: str, device: torch.device, chat_template: str | None = None
) -> Tuned:
    """A model that is not trained, and its adapter. Raises CheckpointError."""
    folder = model_folder(base)
    base_of_adapter = base_of(folder)
    base_folder = base_of_adapter or folder
    of_tokenizer = folder if (folder / "tokenizer.json").is_file() else base_folder
    tokenizer = load_tokenizer(of_tokenizer, remote_code=how.remote_code, chat_template=chat_template)
    model = empty_model(base_folder, how)
    weights_of(model, base_folder, device, remote_code=how.remote_code).fill([("", model)], dtype_of(precision))
    model.tie_weights()
    model.to(device).eval()
    if base_of_adapter is None:
        return Tuned(folder, model, model, tokenizer)
    tuned = attached(model, folder, str(device))
    virtual = None
    if tuned.peft_config["default"].is_prompt_learning:
        virtual = tuned.get_prompt(1)[0].detach()
    return Tuned(folder, tuned, model, tokenizer, virtual)
