"""LLaMA-Factory's dataset_info.json: which files a data set's name means, and what its rows look like.

Source: hiyouga/LLaMA-Factory, src/llamafactory/data/parser.py and converter.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hpclm.core.nearest import nearest_name
from hpclm.recipe.importers.fine_tuning.named_files import glimpse, is_there, json_object
from hpclm.recipe.importers.fine_tuning.row_sources import RowSource, role_names

FILE = "dataset_info.json"
_HUBS = {"hf_hub_url": "Hugging Face", "ms_hub_url": "ModelScope", "om_hub_url": "Modelers"}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
_ALPACA_DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output"}
_TAGS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "observation_tag": ("tool", "observation"),
    "function_tag": ("assistant", "function_call"),
    "system_tag": ("system", "system"),
}
_NOT_READ = {
    **dict.fromkeys(("images", "videos", "audios"), "rows of images, video or sound are not read"),
    **dict.fromkeys(("chosen", "rejected", "kto_tag"), "rows of preferences are not read"),
    "tools": "rows with a list of tools are not read",
}
_ENTRY = frozenset(
    (
        "file_name",
        "formatting",
        "ranking",
        "subset",
        "split",
        "folder",
        "num_samples",
        "columns",
        "tags",
        "script_url",
        "cloud_file_name",
        "file_sha1",
        *_HUBS,
    )
)


class DatasetInfo:
    """The file in `folder`, a path relative to the configuration's. Raises ValueError where it cannot be read."""

    def __init__(self, base: Path, folder: str) -> None:
        self.base, self.folder = base, folder
        self.entries = json_object(base / folder / FILE)

    def source(self, name: str, most: int | None) -> RowSource:
        """The rows of a name. Raises ValueError.

        Args:
            most: max_samples, which takes no more rows than so many.
        """
        entry = self.entries.get(name)
        if not isinstance(entry, dict):
            near = nearest_name(name, list(self.entries))
            raise ValueError(f"{name} is not in {self.folder}/{FILE}" + (f"; did you mean {near}?" if near else ""))
        unknown = sorted(set(entry) - _ENTRY)
        if unknown:
            raise ValueError(f"{name}: {unknown[0][:40]} is not a key of {FILE} that hpclm knows; remove it")
        if entry.get("ranking"):
            raise ValueError(f"{name}: rows of preferences (ranking) are not read")
        if entry.get("num_samples") is not None:
            raise ValueError(f"{name}: num_samples is not supported; write so many rows into a file")
        absent = _on_hub(name, entry)
        files = () if absent is not None else self._files(name, entry)
        found = replace(_form(name, entry, files), absent=absent)
        for file in files:
            self._check_rows(name, entry, self.base / file, most)
        return found

    def _files(self, name: str, entry: dict[str, Any]) -> tuple[str, ...]:
        file = entry.get("file_name")
        if not isinstance(file, str) or not file:
            raise ValueError(f"{name}: has no file_name; a script or a cloud's file is not read")
        if entry.get("split") not in (None, "train"):
            raise ValueError(
                f"{name}: split {str(entry['split'])[:40]} of a file is not supported; write the part to a file"
            )
        path = self.base / self.folder / file
        if is_there(path) and path.is_dir():
            found = sorted(one.name for one in path.iterdir() if one.is_file())
            return tuple(f"{self.folder}/{file}/{one}" for one in found)
        return (f"{self.folder}/{file}",)

    def _check_rows(self, name: str, entry: dict[str, Any], path: Path, most: int | None) -> None:
        """Refuse what LLaMA-Factory would leave out of rows, and what max_samples would."""
        seen = glimpse(path, most or 0)
        if most is not None and seen.rows is None and is_there(path):
            what = f"max_samples {most} may leave out rows of {name}"
            raise ValueError(f"{what}; write its first {most} into a file, or give --set max_samples=null for all")
        if entry.get("formatting", "alpaca") != "alpaca":
            return
        columns = entry.get("columns", _ALPACA_DEFAULTS)
        for key, ours in _ALPACA.items():
            column = columns.get(key) if isinstance(columns, dict) else None
            if column is None and ours in seen.keys:
                what = f"rows have {ours}, which LLaMA-Factory reads only if columns has {key}: {ours}"
                raise ValueError(f"{name}: {what}; add it to {FILE}, or take it out of the rows")


def _on_hub(name: str, entry: dict[str, Any]) -> str | None:
    """Where a data set is that is not on this machine, and how to fetch it."""
    hub = next((key for key in _HUBS if key in entry), None)
    if hub is None:
        return None
    where = str(entry[hub])[:100]
    fetch = f"fetch it (hpclm data fetch {where} --out FOLDER)" if hub == "hf_hub_url" else "fetch it"
    return f"{name} is {where} on {_HUBS[hub]}'s hub; {fetch}, then"


def _form(name: str, entry: dict[str, Any], files: tuple[str, ...]) -> RowSource:
    form = entry.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt", "openai"):
        raise ValueError(f"{name}: formatting {str(form)[:40]} is not known; choose alpaca, sharegpt or openai")
    columns = _texts(name, "columns", entry.get("columns", {}))
    for key, why in _NOT_READ.items():
        if columns.get(key):
            raise ValueError(f"{name}: columns has {key}: {why}")
    if form == "alpaca":
        named = {ours: columns[key] for key, ours in _ALPACA.items() if columns.get(key, ours) != ours}
        return RowSource(name, files, "alpaca", named)
    tags = _texts(name, "tags", entry.get("tags", {}))
    for tag, fitting in (("role_tag", ("from", "role")), ("content_tag", ("value", "content"))):
        if tags.get(tag, fitting[0]) not in fitting:
            raise ValueError(f"{name}: {tag} {tags[tag][:40]} is not supported; call it {fitting[1]} in the rows")
    roles: dict[str, list[str]] = {}
    for tag, (role, default) in _TAGS.items():
        roles.setdefault(role, []).append(tags.get(tag, default))
    try:
        found = role_names(roles)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    messages = columns.get("messages", "conversations")
    named = {} if messages in ("messages", "conversations") else {"messages": messages}
    if columns.get("system", "system") != "system":
        named["system"] = columns["system"]
    return RowSource(name, files, "messages", named, found)


def _texts(name: str, key: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(one is None or isinstance(one, str) for one in value.values()):
        raise ValueError(f"{name}: {key} must be a mapping of names")
    return {str(inner): one for inner, one in value.items() if one}
