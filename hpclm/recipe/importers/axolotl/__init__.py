"""axolotl's YAML of supervised fine-tuning, read as a recipe.

Source: axolotl-ai-cloud/axolotl 0.4 to 0.18 and main of 2026-07, src/axolotl/utils/schemas and examples.
"""

from __future__ import annotations

from pathlib import Path

from hpclm.recipe.importers.axolotl.translation import Axolotl
from hpclm.recipe.importers.importer import Imported, Importer
from hpclm.recipe.tree import Node

_KEYS = ("datasets", "pretraining_dataset", "adapter", "sequence_len", "micro_batch_size", "rl")


def recognises(root: Node) -> bool:
    return root.get("base_model") is not None and any(root.get(key) for key in _KEYS)


def resolve(root: Node, path: Path) -> Node:
    return root


def read(root: Node, folder: Path) -> Imported:
    """The recipe that the keys mean. Raises RecipeError with every refused key at its line."""
    return Axolotl(root, folder).translated()


IMPORTER = Importer("axolotl", recognises, resolve, read)
