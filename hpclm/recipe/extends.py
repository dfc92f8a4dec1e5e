"""`extends`: a recipe merged over others."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import RecipeError
from hpclm.recipe.inheritance import merge
from hpclm.recipe.tree import Node, read_tree

KEY = "extends"
MAX_FILES = 16


def read_extended(path: Path) -> tuple[str, Node]:
    """A recipe's text and tree, merged over everything it extends, in the order written; later ones win.

    The text shows the others too, as comments. Raises RecipeError.
    """
    return _read(path, (), [0])


def _read(path: Path, chain: tuple[Path, ...], count: list[int]) -> tuple[str, Node]:
    count[0] += 1
    text, root = read_tree(path)
    written = root.get(KEY)
    if written is None:
        return text, root
    assert isinstance(root.value, dict)
    here = (*chain, path.resolve())
    base = Node({}, root.place)
    texts = []
    for name, node in _names(written):
        other = path.parent / name
        if other.resolve() in here:
            raise RecipeError(
                f"{node.place}: {KEY}: {name} extends this recipe, which is a cycle; remove one of the two"
            )
        if count[0] >= MAX_FILES:
            raise RecipeError(f"{node.place}: {KEY}: more than {MAX_FILES} files; use fewer")
        if not other.exists():
            raise RecipeError(
                f"{node.place}: {KEY}: {other}: does not exist; paths are relative to the recipe's folder"
            )
        inner, tree = _read(other, here, count)
        texts.append("".join(f"# {line}\n" for line in [f"extends {name}:", *inner.splitlines()]))
        base = _laid(base, tree)
    own = Node({key: node for key, node in root.value.items() if key != KEY}, root.place)
    return "".join([*texts, text]), _laid(base, own)


def _names(written: Node) -> list[tuple[str, Node]]:
    items = written.value if isinstance(written.value, list) else [written]
    names = [(item.value, item) for item in items if isinstance(item.value, str) and item.value.isprintable()]
    if len(names) != len(items) or not names:
        raise RecipeError(f"{written.place}: {KEY} must be a file or a list of files; write extends: [base.yaml]")
    return names


def _laid(base: Node, over: Node) -> Node:
    """`over` merged over `base`; stages with the same name are merged, others follow."""
    merged = merge(base, over)
    below, above = base.get("stages"), over.get("stages")
    if below is None or above is None or not isinstance(below.value, list) or not isinstance(above.value, list):
        return merged
    stages = list(below.value)
    places = {_name(stage): place for place, stage in enumerate(stages) if _name(stage)}
    for stage in above.value:
        place = places.get(_name(stage))
        if place is None:
            stages.append(stage)
        else:
            stages[place] = merge(stages[place], stage)
    assert isinstance(merged.value, dict)
    return Node({**merged.value, "stages": Node(list(stages), above.place)}, merged.place)


def _name(stage: Node) -> str:
    name = stage.get("name")
    return name.value if name is not None and isinstance(name.value, str) else ""
