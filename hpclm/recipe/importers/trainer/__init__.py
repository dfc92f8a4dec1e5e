"""TrainingArguments and TRL's SFTConfig as JSON (`to_json_string()`), and the YAML of TRL's command line, read as a
recipe.

Sources: huggingface/transformers 4.40 to 5.24, src/transformers/training_args.py; huggingface/trl,
trl/trainer/sft_config.py, trl/trainer/model_config.py and trl/scripts/utils.py.
"""

from __future__ import annotations

from pathlib import Path

from hpclm.recipe.importers.importer import Imported, Importer
from hpclm.recipe.importers.trainer.translation import TrainerArguments
from hpclm.recipe.tree import Node

_FIRST = ("output_dir", "dataset_name", "model_name_or_path")
_KEYS = ("per_device_train_batch_size", "learning_rate", "num_train_epochs", "lr_scheduler_type", "max_steps")
_OTHERS = ("base_model", "finetuning_type", "stage", "template", "dataset", "stages")


def recognises(root: Node) -> bool:
    """By keys that every file of it has; not those of the tools that take TrainingArguments too."""
    if any(root.get(key) is not None for key in _OTHERS):
        return False
    return any(root.get(key) for key in _FIRST) and any(root.get(key) for key in _KEYS)


def resolve(root: Node, path: Path) -> Node:
    return root


def read(root: Node, folder: Path) -> Imported:
    """The recipe that the arguments mean. Raises RecipeError with every refused key at its line."""
    return TrainerArguments(root, folder).translated()


IMPORTER = Importer("transformers' Trainer", recognises, resolve, read)
