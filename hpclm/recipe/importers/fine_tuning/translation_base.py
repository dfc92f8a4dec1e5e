"""What the translations of fine-tuning configurations share: reading values, writing the recipe's, a note for each
key, and what is known only once the command line has had its say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hpclm.core.errors import RecipeError
from hpclm.core.nearest import nearest_name
from hpclm.core.secrets import looks_secret, masked
from hpclm.recipe.importers.fine_tuning.argument_keys import Refusals
from hpclm.recipe.importers.importer import Imported, KeyFate, KeyNote
from hpclm.recipe.tree import Node, Place

# PyYAML's words, which these tools read, are YAML 1.1's.
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 60


class KeyTranslation:
    """One file's translation: `out` is the recipe's tree, every value at its line.

    Attributes:
        own: this tool's names for keys that transformers calls otherwise.
        lacking: keys of the recipe that the file does not give, and what to do unless the command line gives them.
        per_device: the samples of one device and step, which batch.global is until the number of devices is known.
    """

    tool: ClassVar[str]
    taken: ClassVar[Mapping[str, str]]
    no_effect: ClassVar[Mapping[str, str]]
    refused: ClassVar[Refusals]
    secrets: ClassVar[tuple[str, ...]] = ()
    own: ClassVar[Mapping[str, str]] = {}

    def __init__(self, root: Node, folder: Path) -> None:
        assert isinstance(root.value, dict)
        self.entries, self.root, self.folder = root.value, root, folder
        self.out: dict[str, Node] = {"version": Node(1, root.place)}
        self.fates: dict[str, tuple[KeyFate, str]] = {}
        self.faults: list[str] = []
        self.lacking: dict[str, list[str]] = {}
        self.per_device: Node | None = None

    def translated(self) -> Imported:
        """The recipe. Raises RecipeError with every fault at its line."""
        stem = _NAME.sub("-", Path(self.root.place.origin.rpartition(":")[0]).stem).strip("-.")[:64]
        self.put("name", None, stem.strip("-.") or "imported")
        self.put("task", None, "fine-tune")
        self.put("engine", None, "hf")
        self.refusals()
        self.translate()
        notes = [self.note(key, node) for key, node in self.entries.items()]
        if self.faults:
            raise RecipeError("\n".join(dict.fromkeys(self.faults)))
        return Imported(Node(self.out, self.root.place), notes, self.completed)

    def translate(self) -> None:
        """Fill `out`."""
        raise NotImplementedError

    # the file's values

    def at(self, key: str) -> Node | None:
        """The value of a key, by transformers' name; None where it is not written, null, or empty text."""
        node = self.entries.get(self.named(key))
        return None if node is None or node.value in (None, "") else node

    def named(self, key: str) -> str:
        return self.own.get(key, key)

    def text(self, key: str) -> str | None:
        node = self.at(key)
        if node is None:
            return None
        if not isinstance(node.value, str):
            self.fault(node, f"{self.named(key)} must be text; put it in quotes")
            return None
        return node.value

    def number(self, key: str) -> float | None:
        """A number, also written as text, as these tools take it."""
        node = self.at(key)
        return None if node is None else self.numeric(node, self.named(key))

    def numeric(self, node: Node, name: str) -> float | None:
        try:
            if isinstance(node.value, bool) or not isinstance(node.value, int | float | str):
                raise ValueError
            text = str(node.value)
            found = float(text) if len(text) <= _LONGEST else math.inf
            if not math.isfinite(found):
                raise ValueError
        except ValueError:
            self.fault(node, f"{name} must be a number, not {_short(node.plain())}")
            return None
        return int(found) if found.is_integer() and abs(found) < 1e15 and not isinstance(node.value, float) else found

    def whole(self, key: str) -> int | None:
        found = self.number(key)
        if found is None:
            return None
        if found != int(found):
            node = self.at(key)
            assert node is not None
            self.fault(node, f"{self.named(key)} must be a whole number, not {found}")
            return None
        return int(found)

    def on(self, key: str, *, default: bool = False) -> bool:
        node = self.at(key)
        if node is None:
            return default
        value = _WORDS.get(node.value.lower()) if isinstance(node.value, str) else node.value
        if value not in (True, False) or isinstance(value, float):
            self.fault(node, f"{self.named(key)} must be true or false, not {_short(node.plain())}")
            return default
        return bool(value)

    def options(self, key: str) -> dict[str, Node]:
        """A mapping, also as the JSON text that a command line has."""
        node = self.at(key)
        if node is None:
            return {}
        value: Any = node
        if isinstance(node.value, str):
            try:
                value = noded(json.loads(node.value), node.place)
            except (ValueError, RecursionError):
                value = node
        if not isinstance(value.value, dict):
            self.fault(node, f"{self.named(key)} must be a mapping; write {self.named(key)}: {{name: value}}")
            return {}
        return dict(value.value)

    def texts(self, key: str) -> list[str]:
        """Names in a list, or in one text with commas."""
        node = self.at(key)
        if node is None:
            return []
        items = [item.value for item in node.value] if isinstance(node.value, list) else [node.value]
        if not all(isinstance(item, str) for item in items):
            self.fault(node, f"{self.named(key)} must be names, in a list or with commas between")
            return []
        return [part.strip() for item in items for part in str(item).split(",") if part.strip()]

    # the recipe's

    def put(self, ours: str, node: Node | None, value: Any) -> None:
        """Set hpclm's key to `value`, at the place of `node` (None: the file's)."""
        place = self.root.place if node is None else node.place
        *sections, last = ours.split(".")
        entries = self.out
        for section in sections:
            inner = entries.setdefault(section, Node({}, place)).value
            assert isinstance(inner, dict)
            entries = inner
        entries[last] = noded(value, place)

    def fault(self, node: Node | None, message: str) -> None:
        self.faults.append(f"{self.root.place if node is None else node.place}: {masked(message)}")

    def fate(self, key: str, fate: KeyFate, note: str) -> None:
        """How a key was handled where it is not what the table says; by transformers' name."""
        self.fates[self.named(key)] = fate, note

    def lacks(self, ours: str, node: Node | None, message: str) -> None:
        """A key that only the command line can give."""
        place = self.root.place if node is None else node.place
        self.lacking.setdefault(ours, []).append(f"{place}: {masked(message)}")

    # keys

    def refusals(self) -> None:
        """A fault for each key whose value would change the result, and for secrets."""
        for key, node in self.entries.items():
            plain = node.plain()
            if (isinstance(plain, str) and key in self.secrets and looks_secret("token", plain)) or _secret_in(node):
                self.fault(node, f"{key} holds a secret, and the file is copied into the run's folder; take it out")
            if key in self.refused:
                harmless, why = self.refused[key]
                if plain in (None, False, "", (), {}) or plain in harmless:
                    self.fates.setdefault(key, (KeyFate.NO_EFFECT, f"{_short(plain)} changes nothing"))
                else:
                    self.fault(node, f"{key}: {why}")

    def note(self, key: str, node: Node) -> KeyNote:
        fate = self.fates.get(key)
        if fate is None and node.value in (None, "") and self.knows(key):
            fate = KeyFate.NO_EFFECT, "not set"
        if fate is None and key in self.taken:
            fate = KeyFate.TAKEN, self.taken[key]
        if fate is None and key in self.no_effect:
            fate = KeyFate.NO_EFFECT, self.no_effect[key]
        if fate is None:
            fate = KeyFate.UNKNOWN, f"no release of {self.tool} that hpclm knows has it; it does nothing here"
            if node.place.argument and not node.place.origin.startswith("--set +"):
                near = nearest_name(key, [*self.taken, *self.no_effect, *self.refused])
                hint = f"did you mean {near}?" if near else f"a key of the recipe is hpclm.{key}"
                self.fault(node, f"{key} is not a key of {self.tool} that hpclm knows; {hint}")
        return KeyNote(key, node.place.origin, *fate)

    def knows(self, key: str) -> bool:
        return key in self.taken or key in self.no_effect or key in self.refused

    # after the command line

    def completed(self, root: Node) -> Node:
        """The recipe with what depends on its other keys. Raises RecipeError for what is still lacking."""
        missing = [text for key, texts in self.lacking.items() if not _given(root, key) for text in texts]
        if missing:
            raise RecipeError("\n".join(missing))
        devices = 1
        for key in ("nodes", "devices_per_node"):
            node = root.get("resources", key)
            if node is not None and isinstance(node.value, int) and node.value > 0:
                devices *= node.value
        written = root.get("batch", "global")
        if devices == 1 or written is None or written is not self.per_device:
            return root
        assert isinstance(root.value, dict)
        batch = root.value["batch"]
        assert isinstance(batch.value, dict)
        assert isinstance(written.value, int)
        scaled = Node({**batch.value, "global": Node(written.value * devices, written.place)}, batch.place)
        return Node({**root.value, "batch": scaled}, root.place)


def _given(root: Node, key: str) -> bool:
    node = root.get(*key.split("."))
    return node is not None and node.value is not None


def _secret_in(node: Node) -> bool:
    return any(isinstance(leaf.value, str) and looks_secret("", leaf.value) for leaf in node.leaves())


def _short(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    plain = value is None or isinstance(value, bool)
    text = words[value] if plain else repr(value) if isinstance(value, str) else str(value)  # type: ignore[index]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def noded(value: Any, place: Place) -> Node:
    """A plain value at a place."""
    if isinstance(value, Node):
        return value
    if isinstance(value, dict):
        return Node({str(key): noded(item, place) for key, item in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([noded(item, place) for item in value], place)
    return Node(value, place)
