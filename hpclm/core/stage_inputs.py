"""The files and folders that a stage opens: the one list, for the plan, the mounts and the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpclm.core.indexed_files import bin_path, idx_path
from hpclm.core.spec import IndexedData, PromptData, TextData, TokenizerSpec


@dataclass(frozen=True)
class Input:
    """A file or folder that a stage opens. `keys`: where the recipe names it; `kind`: what it contains."""

    keys: tuple[str | int, ...]
    kind: Literal["rows", "text", "indexed", "tokenizer", "checkpoint", "prompts"]
    path: str


def stage_inputs(
    *,
    roles: tuple[str, ...],
    data: PromptData | None = None,
    text: TextData | None = None,
    indexed: IndexedData | None = None,
    tokenizer: TokenizerSpec | None = None,
    base: str | None = None,
    prompts: str | None = None,
) -> list[Input]:
    """Everything a stage reads, once, for the plan, the mounts and the nodes. `roles`: the rows its task reads."""
    found: list[Input] = []
    if data is not None:
        for role in roles:
            paths: list[str] = getattr(data, role)
            found += [Input(("data", role, index), "rows", path) for index, path in enumerate(paths)]
    if text is not None:
        found += [Input(("text", "paths", index), "text", path) for index, path in enumerate(text.paths)]
    if indexed is not None:
        for key, prefixes in (("paths", indexed.paths), ("validation", indexed.validation)):
            for index, prefix in enumerate(prefixes):
                pair = (bin_path(prefix), idx_path(prefix))
                found += [Input(("indexed", key, index), "indexed", str(path)) for path in pair]
    if tokenizer is not None:
        for key in ("vocab_file", "merges_file", "tokenizer_file"):
            path = getattr(tokenizer, key)
            if path is not None:
                found.append(Input(("tokenizer", key), "tokenizer", path))
    if base is not None:
        found.append(Input(("model", "checkpoint"), "checkpoint", base))
    if prompts is not None:
        found.append(Input(("prompts",), "prompts", prompts))
    return found
