"""What the translations of NeMo's files share: reading its values, writing hpclm's, and a note for each key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from hpclm.recipe.importers.importer import KeyFate, KeyNote
from hpclm.recipe.importers.nemo.keys import REFUSED, TAKEN, fate_of
from hpclm.recipe.tree import Node

_MISSING = "???"
_PRECISIONS = {"16": "fp16", "16-mixed": "fp16", "bf16": "bf16", "bf16-mixed": "bf16", "32": "fp32", "32-true": "fp32"}
_TIME = re.compile(r"(?:(\d{1,4})-)?(?:(\d{1,4}):)?(\d{1,4}):(\d{2})")
_UNKNOWN = "no release of NeMo that hpclm knows has it, and it does nothing"
_PENALTY = "NeMo r1.18 to r1.22 did not apply it without compute_logprob, nor does data.semantics: nemo"


class Translation:
    """One file's translation: `out` is the recipe's tree, where every value has its line in NeMo's file.

    Args:
        config_of: the configuration in the archive at a path, plain; empty where it cannot be read.
        tasks_of: the tasks that it has prompts for; empty likewise.
    """

    def __init__(
        self, root: Node, config_of: Callable[[str], dict[str, Any]], tasks_of: Callable[[str], Collection[str]]
    ) -> None:
        self.root, self.config_of, self.tasks_of = root, config_of, tasks_of
        self.out: dict[str, Node] = {"version": Node(1, root.place)}
        self.notes: list[KeyNote] = []
        self.faults: list[str] = []
        self.changed: dict[str, tuple[KeyFate, str]] = {}
        self.archived: dict[str, Any] = {}

    def at(self, key: str) -> Node | None:
        """NeMo's value of a key; None where it is not written, null, or `???`."""
        node = self.root.get(*key.split("."))
        return None if node is None or node.value is None or node.value == _MISSING else node

    def put(self, ours: str, node: Node | None, value: Any = ...) -> None:
        """Set hpclm's key to `value` (by default the node's own) at the node's place."""
        if node is None:
            return
        *sections, last = ours.split(".")
        entries = self.out
        for section in sections:
            inner = entries.setdefault(section, Node({}, node.place)).value
            assert isinstance(inner, dict)
            entries = inner
        entries[last] = node if value is ... else noded(value, node)

    def take(self, *keys: str) -> None:
        """Keys whose value is used unchanged."""
        for key in keys:
            self.put(TAKEN[key], self.at(key))

    def take_or(self, key: str, *, default: Any) -> None:
        node = self.at(key)
        self.put(TAKEN[key], node or self.root, default if node is None else ...)

    def translate(self) -> None:
        """Fill `out`."""
        raise NotImplementedError

    def fault(self, node: Node, message: str) -> None:
        self.faults.append(f"{node.place}: {message}")

    def sampling(self, prefix: str) -> None:
        """How answers are generated; NeMo's defaults differ from hpclm's."""
        for key in ("top_k", "temperature", "tokens_to_generate", "min_tokens_to_generate"):
            self.take(f"{prefix}{key}")
        self.take_or(f"{prefix}greedy", default=False)
        top, greedy = self.at(f"{prefix}top_p"), self.at(f"{prefix}greedy")
        if top is not None and top.value == 0:
            self.put("generation.top_p", top, 1.0)
        else:
            self.take_or(f"{prefix}top_p", default=0.9)
        penalty = f"{prefix}repetition_penalty"
        if greedy is not None and greedy.value is True:
            self.changed[penalty] = (KeyFate.NO_EFFECT, "greedy answers are not penalised")
        else:
            self.take_or(penalty, default=1.2)
            self.changed[penalty] = (KeyFate.TAKEN, f"{TAKEN[penalty]}; {_PENALTY}")

    def time_limit(self) -> None:
        """Slurm's time, `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`, in minutes, rounded up."""
        written = self.at("run.time_limit")
        if written is None:
            return
        time = _TIME.fullmatch(str(written.value))
        if time is None:
            self.fault(written, f"{str(written.value)[:40]!r} is not a time; write HH:MM:SS")
            return
        days, hours, minutes, seconds = (int(part or 0) for part in time.groups())
        self.put("resources.time_limit_min", written, -(-seconds // 60) + minutes + 60 * (hours + 24 * days))

    def shared(self, prefix: str) -> None:
        """Devices, precision and split."""
        devices = self.at("trainer.devices")
        self.put("resources.devices_per_node", devices)
        self.take("trainer.num_nodes")
        accelerator = self.at("trainer.accelerator")
        if accelerator is not None and accelerator.value not in ("gpu", "cpu"):
            self.fault(accelerator, f"{accelerator.value!r} is not supported; choose gpu or cpu")
        self.take("trainer.accelerator")
        self.precision(self.at("trainer.precision"))
        for axis in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            node = self.at(f"{prefix}{axis}")
            if node is not None and node.value == -1:
                degree = self.archived.get(axis, 1)
                self.put(TAKEN[f"{prefix}{axis}"], node, degree if isinstance(degree, int) else 1)
                self.changed[f"{prefix}{axis}"] = (KeyFate.TAKEN, f"{TAKEN[axis]}, which the archive says")
            else:
                self.take(f"{prefix}{axis}")

    def precision(self, written: Node | None) -> None:
        if written is not None:
            word = _PRECISIONS.get(str(written.value))
            if word is None:
                self.fault(written, f"{written.value!r} is not a valid precision; choose 16, bf16 or 32")
            self.put("trainer.precision", written, word or "fp32")

    def path(self, ours: str, node: Node | None) -> None:
        if node is not None and isinstance(node.value, str) and ours == "prompts" and "/" not in node.value:
            self.put(ours, node, f"./{node.value}")
        else:
            self.put(ours, node)

    def files(self, ours: str, node: Node | None) -> None:
        """One path or a list of them."""
        self.put(ours, node, ... if node is None or isinstance(node.value, list) else [node.plain()])

    def keys_of(self, section: str) -> list[str]:
        node = self.root.get(*section.split("."))
        return list(node.value) if node is not None and isinstance(node.value, dict) else []

    def notes_of_all(self) -> None:
        """A note for each key. As in Hydra, an unknown one is an error only where the command line changes it
        without adding it by `+`."""
        for key, node in _keys(self.root, ""):
            known = self.changed.get(key) or fate_of(key)
            harmless, instead = REFUSED.get(key, ((node.value,), ""))
            if node.value not in harmless:
                self.fault(node, f"{key} changes results, and hpclm does not have it; write {instead}, and remove this")
                continue
            if known is None and node.place.argument and not node.place.origin.startswith("--set +"):
                near = difflib.get_close_matches(key, list(TAKEN), n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                self.fault(node, f"{key}: unknown to hpclm, and not in the file; {hint}+{key}=… adds it all the same")
                continue
            if known is None:
                self.notes.append(
                    KeyNote(
                        key,
                        node.place.origin,
                        KeyFate.UNKNOWN,
                        "no release of NeMo that hpclm knows has it, and it does nothing",
                    )
                )
                continue
            if node.value == _MISSING and known[0] is KeyFate.TAKEN:
                self.fault(node, f"{key} must be given; write it, or --set {key}=…")
            self.notes.append(KeyNote(key, node.place.origin, *known))


def _keys(node: Node, prefix: str) -> Iterator[tuple[str, Node]]:
    """Every key that has a value rather than a section; a list is a value."""
    if isinstance(node.value, dict) and node.value:
        for key, inner in node.value.items():
            yield from _keys(inner, f"{prefix}.{key}" if prefix else key)
    elif prefix:
        yield prefix, node


def template_of(written: dict[str, Any]) -> dict[str, Any]:
    """NeMo's task template with NeMo's defaults, which differ from hpclm's."""
    known = ("taskname", "prompt_template", "total_virtual_tokens", "virtual_token_splits", "truncate_field")
    found = {key: written[key] for key in known if key in written}
    return found | {
        "answer_only_loss": bool(written.get("answer_only_loss", False)),
        "answer_field": written.get("answer_field"),
    }


def noded(value: Any, node: Node) -> Node:
    """A plain value at a node's place."""
    if isinstance(value, dict):
        return Node({key: noded(item, node) for key, item in value.items()}, node.place)
    if isinstance(value, list | tuple):
        return Node([noded(item, node) for item in value], node.place)
    return Node(value, node.place)
