"""What a stage inherits: its own keys laid over the recipe's top level."""

from __future__ import annotations

from hpclm.recipe.tree import Node

# Ways to say one thing: writing one of them puts aside an inherited other.
ALTERNATIVES: dict[str, tuple[frozenset[str], ...]] = {
    "trainer": (frozenset({"max_steps"}), frozenset({"max_epochs"})),
    "tokenizer": (frozenset({"train"}), frozenset({"vocab_file", "merges_file"}), frozenset({"tokenizer_file"})),
}


def merge(base: Node, over: Node, section: str = "") -> Node:
    """`over` laid over `base`, mapping by mapping; lists and scalars replace whole. Places go with their values."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    kept = without_alternatives(base.value, set(over.value), section)
    merged = dict(kept)
    for key, node in over.value.items():
        merged[key] = merge(kept[key], node, key) if key in kept else node
    # A mapping that only `--set` opened still stands where the recipe wrote it.
    return Node(merged, base.place if over.place.argument else over.place)


def without_alternatives(entries: dict[str, Node], written: set[str], section: str) -> dict[str, Node]:
    """`entries` without the other ways to say what `written` says."""
    groups = ALTERNATIVES.get(section, ())
    chosen = [group for group in groups if group & written]
    dropped = {key for group in groups if chosen and group not in chosen for key in group}
    return {key: node for key, node in entries.items() if key not in dropped}
