"""Megatron-LM's launch scripts of pretrain_gpt.py, and files of its flags, read as a recipe."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import RecipeError
from hpclm.recipe.importers.importer import Imported, Importer
from hpclm.recipe.importers.megatron.shell import Script, Word
from hpclm.recipe.importers.megatron.translation import Flags
from hpclm.recipe.tree import Node, Place

SUFFIXES = (".sh", ".sbatch", ".slurm", ".bash", ".args", ".txt")
# The mark of a tree that was made from a script.
_MARK = "megatron_script"


def parse(text: str, origin: str) -> Node:
    """The flags as a tree, by argparse's names (`num_layers`), each at its line. Nothing of the script is run.

    Raises RecipeError where no flags are found.
    """
    try:
        script = Script(text)
    except ValueError as error:
        raise RecipeError(f"{origin}:1: cannot be read ({error}); write its flags into a file") from None
    if script.unread:
        raise RecipeError(
            "\n".join(
                f"{origin}:{line}: a condition or loop around this cannot be read without running it; write out what "
                "it gives"
                for line in script.unread[:5]
            )
        )
    found: dict[str, Node] = {_MARK: Node(True, Place(f"{origin}:1"))}
    flag: Word | None = None
    values: list[Word] = []

    def close() -> None:
        if flag is not None:
            name = flag.text.lstrip("-").replace("-", "_")
            place = Place(f"{origin}:{flag.line}", f"--{name.replace('_', '-')}")
            nodes = [Node(word.text.strip("'\""), place) for word in values]
            found[name] = Node(True, place) if not nodes else nodes[0] if len(nodes) == 1 else Node(nodes, place)

    for word in _words(script):
        if word.text.startswith("--"):
            close()
            name, _, value = word.text.partition("=")
            flag, values = Word(name, word.line), [Word(value, word.line)] if value else []
        else:
            values.append(word)
    close()
    if len(found) < 3:
        raise RecipeError(f"{origin}:1: has no flags of Megatron-LM's pretrain_gpt.py; is it the right file?")
    return Node(found, Place(f"{origin}:1"))


def _words(script: Script) -> list[Word]:
    """The program's own name ends the launcher's flags."""
    return [word for word in script.command if not (word.text.endswith(".py") and not word.text.startswith("--"))]


def recognises(root: Node) -> bool:
    return root.get(_MARK) is not None


def own_key(root: Node, key: str) -> str:
    """`--num-layers` and `num-layers` are num_layers."""
    return key.lstrip("-").replace("-", "_")


def read(root: Node, folder: Path) -> Imported:
    """The recipe that the flags mean. Raises RecipeError with every refused flag at its line."""
    assert isinstance(root.value, dict)
    flags = Flags({name: node for name, node in root.value.items() if name != _MARK}, root.place)
    return flags.translated()


def resolve(root: Node, path: Path) -> Node:
    return root


IMPORTER = Importer("Megatron-LM", recognises, resolve, read, own_key, suffixes=SUFFIXES, parse=parse)
