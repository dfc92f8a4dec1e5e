"""NeMo 1.x's own YAML of GPT prompt learning and its evaluation, read as a recipe.

Sources: NVIDIA/NeMo r1.13 to r1.22, examples/nlp/language_modeling/conf/megatron_gpt_prompt_learning_config.yaml, its
SQuAD variant, and megatron_gpt_prompt_learning_inference.yaml; what their values do is megatron_gpt_prompt_learning_
model.py's and megatron_gpt_prompt_learning_eval.py's. NVIDIA/NeMo-Megatron-Launcher 23.03 to
24.05, conf/prompt_learning/gpt3/squad.yaml and conf/evaluation/prompt_gpt3/squad.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError, RecipeError
from hpclm.recipe.importers.importer import Imported, Importer, KeyFate
from hpclm.recipe.importers.nemo.evaluation import Evaluation, is_launcher_evaluation
from hpclm.recipe.importers.nemo.interpolation import interpolated
from hpclm.recipe.importers.nemo.keys import fate_of
from hpclm.recipe.importers.nemo.training import Training
from hpclm.recipe.importers.nemo.translation import Translation
from hpclm.recipe.tree import Node, read_tree

_LAUNCHER_CONFIG = "config.yaml"
_LAUNCHER_STEPS = ("prompt_learning.", "evaluation.")


def is_nemo(root: Node) -> bool:
    """Whether a tree is NeMo's or its launcher's, training or evaluation."""
    training = any(root.get("model", key) for key in ("language_model_path", "virtual_prompt_style"))
    evaluation = any(root.get(key) for key in ("virtual_prompt_model_file", "gpt_model_file"))
    return training or evaluation or is_launcher_evaluation(root)


def own_key(root: Node, key: str) -> str:
    """A key of the launcher's command line as its file has it: `prompt_learning.run.name` is `run.name`."""
    step = next((one for one in _LAUNCHER_STEPS if key.startswith(one)), "")
    return key.removeprefix(step) if root.get("run") is not None else key


def read(root: Node, folder: Path) -> Imported:
    """The recipe that a NeMo file means. For its evaluation the archives it names are opened, for their
    configuration."""
    kind: type[Translation] = Training
    if is_launcher_evaluation(root) or any(root.get(key) for key in ("inference", "virtual_prompt_model_file")):
        kind = Evaluation
    made = kind(root, lambda archive: _config_in(folder, archive), lambda archive: _tasks_in(folder / archive))
    made.translate()
    made.notes_of_all()
    if made.faults:
        raise RecipeError("\n".join(made.faults))
    return Imported(Node(made.out, root.place), made.notes)


def resolve(root: Node, path: Path) -> Node:
    """The tree without references; a file of the launcher may refer to its `conf/config.yaml`."""
    return interpolated(root, _launcher_config(path) if root.get("run") else None, _matters)


def _matters(key: str) -> bool:
    fate = fate_of(key)
    return fate is not None and fate[0] is KeyFate.TAKEN


def _launcher_config(path: Path) -> Node | None:
    """The configuration above `conf/<step>/<model>/<file>`, None where there is none."""
    for folder in path.absolute().parents[:3]:
        config = folder / _LAUNCHER_CONFIG
        if config.is_file() and config != path.absolute():
            try:
                return read_tree(config)[1]
            except RecipeError:
                return None
    return None


def _config_in(folder: Path, path: str) -> dict[str, Any]:
    """The configuration of an archive, empty where it cannot be read. The path of its language model is, like the
    archive's own, relative to `folder`."""
    from hpclm.formats.archive import Archive
    from hpclm.formats.nemo.model_config import read_config
    from hpclm.formats.nemo.prompt_archives import language_model_of

    try:
        with Archive(folder / path) as archive:
            config = read_config(archive)
    except CheckpointError:
        return {}
    return config | {"language_model_path": language_model_of(config, path)}


def _tasks_in(path: Path) -> list[str]:
    """The tasks that an archive has prompts for, empty where it cannot be read."""
    from hpclm.formats.nemo.prompt_archives import trained_tasks

    try:
        return list(trained_tasks(str(path)))
    except CheckpointError:
        return []


IMPORTER = Importer("NeMo", is_nemo, resolve, read, own_key)
