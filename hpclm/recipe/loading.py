"""From a file to stages: read, override, inherit, validate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpclm.core.errors import RecipeError
from hpclm.core.registries import TASKS
from hpclm.recipe.error_messages import faults, unknown_key
from hpclm.recipe.extends import read_extended
from hpclm.recipe.importers import KeyFate, KeyNote, importer_for, parser_for
from hpclm.recipe.inheritance import merge
from hpclm.recipe.overrides import Override, apply, flag, parse_override
from hpclm.recipe.schema.base import plain_name
from hpclm.recipe.schema.stage import VERSION, Stage, section_names, stage_model
from hpclm.recipe.tree import Node, Place, file_text, with_keys

MAX_STAGES = 50
OURS = "hpclm."
_ROOT_KEYS = frozenset({"version", "name", "stages"})
_SINGLE_KEYS = frozenset({"task", "engine", "prompts"})


@dataclass(frozen=True)
class LoadedStage:
    """A resolved stage, and where each of its values was written."""

    recipe: Stage
    tree: Node
    own: frozenset[str]

    def where(self, *keys: str | int) -> str:
        """`recipes/x.yaml:14 parallel.tensor` for a key of the stage, written or not."""
        return str(self.tree.where(*keys))

    def wrote(self, *keys: str | int) -> bool:
        """Whether the recipe or the command line sets this key."""
        node = self.tree.get(*keys)
        return node is not None and node.value is not None


@dataclass(frozen=True)
class LoadedRecipe:
    """A complete recipe, valid by itself; whether it can run is checked by the plan.

    Attributes:
        path: as the user gave it. `text`: the file's content.
        overrides: the `--set` arguments, in order.
        sections: the top-level sections of the file, as (name, place).
        doubtful_keys: those of another tool's file that its importer does not know, or that are done differently.
    """

    path: Path
    name: str
    text: str
    stages: tuple[LoadedStage, ...]
    overrides: tuple[str, ...]
    sections: tuple[tuple[str, str], ...]
    doubtful_keys: tuple[KeyNote, ...] = ()

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default and override written out and absolute paths; it
        is itself a recipe (JSON is YAML)."""
        stages = [stage.recipe.model_dump(mode="json", by_alias=True) for stage in self.stages]
        return {"version": VERSION, "name": self.name, "stages": stages}


def load(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    nodes: int | None = None,
    devices_per_node: int | None = None,
) -> LoadedRecipe:
    """Read the recipe at `path`: that file, those it extends, of other tools' files what they name: NeMo's archive,
    LLaMA-Factory's dataset_info.json and the first of its rows, DeepSpeed's JSON; nothing else.

    Args:
        overrides: `--set` arguments such as `optim.lr=1e-4`.
        nodes: `--nodes`, the same as `--set resources.nodes=…`.
        devices_per_node: `--devices-per-node`, the same as `--set resources.devices_per_node=…`.

    Raises RecipeError with every error, one per line: `file:line key: what; how to fix it`.
    """
    path = Path(path)
    text, root, notes = translated(path, overrides, nodes=nodes, devices_per_node=devices_per_node)
    root = with_keys(root)
    broken = _root_faults(root)
    trees = _stage_trees(root, broken)
    directory = os.path.abspath(path.parent)  # noqa: PTH100 - resolve() would follow links out of the recipe's folder
    stages = [_validate(tree, own, directory, broken) for tree, own in trees]
    _unused_overrides(root, trees, broken)
    if broken:
        raise RecipeError("\n".join(dict.fromkeys(broken)))
    assert isinstance(root.value, dict)
    name = root.value["name"].value
    assert isinstance(name, str)
    sections = tuple((key, str(node.place)) for key, node in root.value.items() if key in section_names())
    doubtful = tuple(note for note in notes if note.fate in (KeyFate.UNKNOWN, KeyFate.DIFFERS))
    return LoadedRecipe(
        path, name, text, tuple(s for s in stages if s is not None), tuple(overrides), sections, doubtful
    )


def translated(
    path: Path, overrides: Sequence[str] = (), *, nodes: int | None = None, devices_per_node: int | None = None
) -> tuple[str, Node, list[KeyNote]]:
    """The file's text, its tree with every override in it, and if the file is another tool's, a note for each key.

    For such a file `--set` takes the tool's own keys, as its users know them; `--set
    hpclm.KEY=…` changes the translated recipe.
    """
    reader = parser_for(path)
    if reader is None:
        text, root = read_extended(path)
    else:
        text = file_text(path, "script")
        root = reader(text, str(path))
    wanted = _overrides(overrides, nodes, devices_per_node)
    importer = importer_for(root)
    if importer is None:
        return text, apply(root, wanted), []
    ours = [one for one in wanted if one.key.startswith(OURS) or one.origin.startswith(("--nodes", "--devices"))]
    own = [replace(one, key=importer.own_key(root, one.key)) for one in wanted if one not in ours]
    theirs = importer.resolve(apply(root, own), path)
    made = importer.read(theirs, path.parent)
    recipe = apply(made.root, [replace(one, key=one.key.removeprefix(OURS)) for one in ours])
    return text, made.completed(recipe), made.notes


def _overrides(texts: Sequence[str], nodes: int | None, devices_per_node: int | None) -> list[Override]:
    broken, found = [], []
    for text in texts:
        try:
            found.append(parse_override(text))
        except RecipeError as error:
            broken.append(str(error))
    if broken:
        raise RecipeError("\n".join(broken))
    if nodes is not None:
        found.append(flag("nodes", "resources.nodes", nodes))
    if devices_per_node is not None:
        found.append(flag("devices-per-node", "resources.devices_per_node", devices_per_node))
    return found


def _root_faults(root: Node) -> list[str]:
    """Errors in the recipe's own keys: version, name, and the other top-level keys."""
    assert isinstance(root.value, dict)
    broken = []
    several = "stages" in root.value
    known = sorted(_ROOT_KEYS | section_names() | (frozenset() if several else _SINGLE_KEYS))
    for key, node in root.value.items():
        if several and key in ("task", "engine", "prompts", "base"):
            broken.append(f"{node.place}: cannot be combined with stages; move it into the stage it belongs to")
        elif key == "base":
            broken.append(f"{node.place}: a single stage has no earlier stage to use; give model.checkpoint")
        elif key not in known:
            broken.append(unknown_key(node.place, key, known, _sections_with(key)))
    version = root.get("version")
    if version is None:
        broken.append(
            f"{root.where('version')}: is missing; add 'version: {VERSION}' (the version of the recipe format)"
        )
    elif version.value != VERSION or isinstance(version.value, bool):
        broken.append(f"{version.place}: this hpclm reads version {VERSION}; write 'version: {VERSION}'")
    broken += _name_faults(root)
    return broken


def _name_faults(root: Node) -> list[str]:
    name = root.get("name")
    if name is None:
        return [f"{root.where('name')}: is missing; add it (the run's name starts with it)"]
    if not isinstance(name.value, str):
        return [f"{name.place}: must be text; put it in quotes"]
    try:
        plain_name(name.value)
    except ValueError as error:
        return [f"{name.place}: {error}"]
    return []


def _sections_with(key: str) -> list[str]:
    found = []
    for section in sorted(section_names()):
        model = stage_model().model_fields[section].annotation
        inner = getattr(model, "__args__", (model,))[0]
        fields = getattr(inner, "model_fields", {})
        if key in {info.alias or name for name, info in fields.items()}:
            found.append(f"{section}.{key}")
    return found


def _stage_trees(root: Node, broken: list[str]) -> list[tuple[Node, frozenset[str]]]:
    """Each stage with what it inherits, and the names of the sections that it writes itself."""
    assert isinstance(root.value, dict)
    shared = {key: node for key, node in root.value.items() if key in section_names()}
    stages = root.get("stages")
    if stages is None:
        return [(_single(root, shared), frozenset(shared))]
    if not isinstance(stages.value, list) or not 1 <= len(stages.value) <= MAX_STAGES:
        broken.append(
            f"{stages.place}: must be a list of 1 to {MAX_STAGES} stages; write '- name: …' and task for each"
        )
        return []
    trees: list[tuple[Node, frozenset[str]]] = []
    names: dict[str, Place] = {}
    for node in stages.value:
        if not isinstance(node.value, dict):
            broken.append(f"{node.place}: must be a mapping with name and task; write '- name: …'")
            continue
        name = node.get("name")
        if name is not None and isinstance(name.value, str):
            if name.value.lower() in names:
                first = names[name.value.lower()].origin
                broken.append(f"{name.place}: is already used by the stage at {first}; give each stage its own name")
            names.setdefault(name.value.lower(), name.place)
        trees.append((merge(Node(shared, root.place), node), frozenset(node.value)))
    return trees


def _single(root: Node, shared: dict[str, Node]) -> Node:
    """The one stage of a recipe without `stages`; it is called by its task."""
    entries = dict(shared)
    for key in ("task", "engine", "prompts"):
        node = root.get(key)
        if node is not None:
            entries[key] = node
    task = root.get("task")
    known = task is not None and task.value in TASKS
    # If the task itself is wrong, only that is reported, not its consequence for the name.
    entries["name"] = task if task is not None and known else Node("stage", root.place)
    return Node(entries, root.place)


def _validate(tree: Node, own: frozenset[str], directory: str, broken: list[str]) -> LoadedStage | None:
    try:
        stage = stage_model().model_validate(tree.plain(), context={"directory": directory})
    except ValidationError as error:
        broken.extend(faults(error, tree, stage_model()))
        return None
    return LoadedStage(stage, tree, own)


def _unused_overrides(root: Node, trees: list[tuple[Node, frozenset[str]]], broken: list[str]) -> None:
    """Refuse a `--set` that changes no stage, because each stage sets its own value."""
    if "stages" not in (root.value if isinstance(root.value, dict) else {}):
        return
    reached = {node.place.origin for tree, _ in trees for node in tree.leaves()}
    assert isinstance(root.value, dict)
    for key, section in root.value.items():
        if key not in section_names():
            continue
        for node in section.leaves():
            if node.place.argument and node.place.origin not in reached:
                own = f"stages.<name>.{node.place.key}"
                broken.append(f"{node.place.origin}: has no effect, since every stage sets its own; write {own}")
