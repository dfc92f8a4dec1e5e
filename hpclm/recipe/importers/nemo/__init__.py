"""NeMo 1.x's own YAML of GPT prompt learning and its evaluation, read as a recipe.

Sources: NVIDIA/NeMo r1.13 to r1.22, examples/nlp/language_modeling/conf/megatron_gpt_prompt_learning_config.yaml, its
SQuAD variant, and megatron_gpt_prompt_learning_inference.yaml; what their values do is megatron_gpt_prompt_learning_
model.py's and megatron_gpt_prompt_learning_eval.py's.
"""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import CheckpointError
from hpclm.recipe.importers.importer import Imported, Importer
from hpclm.recipe.importers.nemo.interpolation import interpolated
from hpclm.recipe.importers.nemo.translation import is_nemo, translate
from hpclm.recipe.tree import Node


def read(root: Node, folder: Path) -> Imported:
    """The recipe that a NeMo file means. For its evaluation the archive it names is opened, for the task templates."""
    return translate(root, lambda archive: _templates_in(folder / archive))


def _templates_in(path: Path) -> object:
    """The task templates of a prompt-learning archive, None where it cannot be read."""
    from hpclm.formats.nemo.archive import Archive
    from hpclm.formats.nemo.model_config import read_config

    try:
        with Archive(path) as archive:
            return read_config(archive).get("task_templates")
    except CheckpointError:
        return None


IMPORTER = Importer("NeMo", is_nemo, interpolated, read)
