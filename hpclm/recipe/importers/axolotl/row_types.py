"""axolotl's `datasets`: which files an entry means, and what its type says about rows and prompts.

Source: axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas/datasets.py, src/axolotl/prompters.py and
src/axolotl/prompt_strategies/chat_template.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpclm.recipe.importers.fine_tuning.named_files import is_there, located
from hpclm.recipe.importers.fine_tuning.row_sources import ROLE_NAMES, RowSource, role_names
from hpclm.recipe.tree import Node

_ALPACA = ("alpaca", "alpaca_instruct", "alpaca:instruct")
_CHAT = ("chat_template", "chat_template.default")
_ROWS = (".json", ".jsonl", ".parquet")
_LOADERS = ("json", "parquet")
# Keys of an entry that are read, and those that change nothing.
_READ = frozenset(
    (
        "path",
        "type",
        "data_files",
        "split",
        "field_messages",
        "message_property_mappings",
        "message_field_role",
        "message_field_content",
        "roles",
        "roles_to_train",
        "train_on_eos",
        "train_on_eot",
        "chat_template",
        "chat_template_jinja",
        "drop_system_message",
    )
)
_HARMLESS = frozenset(
    (
        "name",
        "ds_type",
        "trust_remote_code",
        "revision",
        "preprocess_shards",
        "conversation",
        "field_tools",
        "field_thinking",
        "template_thinking_key",
        "message_field_training",
        "message_field_training_detail",
    )
)
_WHY = {
    "completion": "raw text is task pretrain's, by engine megatron",
    "sharegpt": "axolotl has removed it; write type: chat_template and field_messages: conversations",
}


def source(number: int, entry: Node, folder: Path, template: str | None) -> RowSource:
    """An entry's rows. Raises ValueError.

    Args:
        template: the chat template that the file names for all entries.
    """
    plain = entry.plain()
    name = f"datasets[{number}]"
    if not isinstance(plain, dict):
        raise ValueError(f"{name} must be a mapping with path and type")
    for key, value in plain.items():
        if key not in _READ | _HARMLESS and value not in (None, False, "", ()):
            raise ValueError(f"{name}.{key[:40]} is not supported; remove it, or change the rows")
    kind = plain.get("type")
    if isinstance(kind, dict):
        raise ValueError(f"{name} has a prompt of its own; write it as Jinja into a file, and type: chat_template")
    if kind in _ALPACA:
        files, absent = _files(name, plain, folder)
        return RowSource(name, files, "alpaca", template="axolotl", absent=absent)
    if kind not in _CHAT:
        why = _WHY.get(str(kind).partition(":")[0].partition(".")[0], "is not supported")
        raise ValueError(f"{name}.type {str(kind)[:40]}: {why}; choose alpaca or chat_template")
    return _chat(name, plain, folder, template)


def _chat(name: str, plain: dict[str, Any], folder: Path, template: str | None) -> RowSource:
    for key in ("drop_system_message",):
        if plain.get(key):
            raise ValueError(f"{name}.{key} is not supported; take the messages out of the rows")
    own = plain.get("chat_template") or template or "tokenizer_default"
    jinja = plain.get("chat_template_jinja")
    file = None
    if jinja is not None:
        path = located(folder, str(jinja)) if "\n" not in str(jinja) else ""
        if not path or not is_there(folder / path):
            raise ValueError(f"{name}.chat_template_jinja must be a file's name; write the template into a file")
        file = path
    for place, fitting in (("role", ("role", "from")), ("content", ("content", "value"))):
        mapped = plain.get("message_property_mappings")
        column = mapped.get(place) if isinstance(mapped, dict) else plain.get(f"message_field_{place}")
        if column is not None and column not in fitting:
            raise ValueError(f"{name}: {place} is called {str(column)[:40]}; call it {fitting[0]} in the rows")
    messages = plain.get("field_messages") or "messages"
    columns = {} if messages in ("messages", "conversations") else {"messages": str(messages)}
    files, absent = _files(name, plain, folder)
    return RowSource(
        name, files, "messages", columns, _roles(name, plain),
        template=f"chat:{own}", chat_template=file, learn=_learn(name, plain), absent=absent,
    )  # fmt: skip


def _roles(name: str, plain: dict[str, Any]) -> dict[str, str]:
    roles = plain.get("roles")
    if roles is None:
        return {}
    if not isinstance(roles, dict) or not all(isinstance(one, tuple) for one in roles.values()):
        raise ValueError(f"{name}.roles must be a mapping of lists, as in user: [human]")
    try:
        return role_names({role: [str(one) for one in names] for role, names in roles.items()})
    except ValueError as error:
        raise ValueError(f"{name}.roles: {error}") from None


def _learn(name: str, plain: dict[str, Any]) -> str:
    wanted = plain.get("roles_to_train")
    if wanted is not None and not (
        isinstance(wanted, tuple) and wanted and all(one in ROLE_NAMES["assistant"] for one in wanted)
    ):
        raise ValueError(f"{name}.roles_to_train is not supported; choose [assistant]")
    for key in ("train_on_eos", "train_on_eot"):
        if plain.get(key) not in (None, "turn"):
            raise ValueError(f"{name}.{key} {str(plain[key])[:20]} is not supported; choose turn")
    return "answers"


def _files(name: str, plain: dict[str, Any], folder: Path) -> tuple[tuple[str, ...], str | None]:
    """The files, or what to do where they are not here."""
    path, split = plain.get("path"), plain.get("split")
    if not isinstance(path, str) or not path:
        raise ValueError(f"{name} has no path; add it")
    listed = plain.get("data_files")
    files = [str(one) for one in (listed if isinstance(listed, tuple) else () if listed is None else (listed,))]
    found = _local(path, files, folder)
    if not found:
        fetch = f"fetch it (hpclm data fetch {path[:100]} --out FOLDER), then"
        return (), f"{path[:100]} is neither a file nor a folder here; {fetch}"
    if split not in (None, "train"):
        raise ValueError(f"{name}.split {str(split)[:40]} of a file is not supported; write the part into a file")
    return found, None


def _local(path: str, files: list[str], folder: Path) -> tuple[str, ...]:
    if path in _LOADERS:
        return tuple(located(folder, one) for one in files)
    here = located(folder, path)
    whole = folder / here
    if not is_there(whole):
        return ()
    if whole.is_file():
        return (here,)
    return tuple(f"{here}/{one}" for one in files or sorted(_names(whole)))


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from (one.name for one in folder.iterdir() if one.suffix in _ROWS and one.is_file())
    except OSError:
        return
