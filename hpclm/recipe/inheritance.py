"""What a stage inherits: its own keys merged over the recipe's top level."""

from __future__ import annotations

from hpclm.recipe.tree import Node

# Keys that exclude each other: setting one of them removes an inherited other.
ALTERNATIVES: dict[str, tuple[frozenset[str], ...]] = {
    "trainer": (frozenset({"max_steps"}), frozenset({"max_epochs"}), frozenset({"train_samples"})),
    "tokenizer": (frozenset({"train"}), frozenset({"vocab_file", "merges_file"}), frozenset({"tokenizer_file"})),
}


def merge(base: Node, over: Node, section: str = "") -> Node:
    """`over` merged over `base`, mapping by mapping; lists and scalars are replaced. Values keep their places."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    kept = without_alternatives(base.value, set(over.value), section)
    merged = dict(kept)
    for key, node in over.value.items():
        merged[key] = merge(kept[key], node, key) if key in kept else node
    # A mapping that `--set` only changes keeps its place in the recipe.
    return Node(merged, base.place if over.place.argument else over.place)


def without_alternatives(entries: dict[str, Node], written: set[str], section: str) -> dict[str, Node]:
    """`entries` without the keys that `written` excludes."""
    groups = ALTERNATIVES.get(section, ())
    chosen = [group for group in groups if group & written]
    dropped = {key for group in groups if chosen and group not in chosen for key in group}
    return {key: node for key, node in entries.items() if key not in dropped}
