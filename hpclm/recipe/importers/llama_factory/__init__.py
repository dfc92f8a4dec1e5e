"""LLaMA-Factory's YAML of supervised fine-tuning, with its dataset_info.json, read as a recipe.

Source: hiyouga/LLaMA-Factory 0.7 to 0.9.5 and main of 2026-08, src/llamafactory/{hparams,data} and examples.
"""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import RecipeError
from hpclm.recipe.importers.importer import Imported, Importer
from hpclm.recipe.importers.llama_factory.translation import LlamaFactory
from hpclm.recipe.tree import Node

_KEYS = ("stage", "finetuning_type", "template", "dataset", "dataset_dir", "export_dir", "infer_backend")
_SECOND = ("train_dataset", "dist_config", "peft_config", "kernel_config", "sample_backend")


def recognises(root: Node) -> bool:
    """By its own keys beside the model's; of its second format (v1) too, which is refused."""
    if root.get("finetuning_type") is not None:
        return True
    return (root.get("model_name_or_path") is not None and any(root.get(key) for key in _KEYS)) or _is_second(root)


def _is_second(root: Node) -> bool:
    model = root.get("model")
    return model is not None and isinstance(model.value, str) and any(root.get(key) for key in _SECOND)


def resolve(root: Node, path: Path) -> Node:
    return root


def read(root: Node, folder: Path) -> Imported:
    """The recipe that the keys mean. Raises RecipeError with every refused key at its line."""
    if root.get("model_name_or_path") is None and _is_second(root):
        what = "is LLaMA-Factory's second format (v1), which is not read; write the first, with model_name_or_path"
        raise RecipeError(f"{root.where('model')}: {what}")
    return LlamaFactory(root, folder).translated()


IMPORTER = Importer("LLaMA-Factory", recognises, resolve, read)
