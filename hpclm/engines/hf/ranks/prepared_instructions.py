"""The tokenised rows of a stage, made by its first rank while the others wait."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from hpclm.core import heartbeat
from hpclm.core.errors import DataError
from hpclm.core.files import read_object, write_json
from hpclm.core.fine_tune_spec import FineTuneStageSpec, InstructionData
from hpclm.core.layout import StagePaths
from hpclm.core.locks import exclusive
from hpclm.core.logging import log
from hpclm.data.instructions.instruction_files import records
from hpclm.data.ranks.instruction_tokens import InstructionEncoder, TokenRow
from hpclm.data.ranks.prepared_rows import RowCounts, file_digest, key_of, prepare
from hpclm.engines.hf.ranks.hf_loading import load_tokenizer
from hpclm.engines.hf.ranks.hf_stage import HfStage

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                    "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt")  # fmt: skip
# Another run that prepares the same rows is waited for.
_WAIT_S = 6 * 3600.0


def prepare_rows(
    spec: FineTuneStageSpec, paths: StagePaths, folder: Path, between: Callable[[], None] = heartbeat.beat
) -> dict[str, RowCounts]:
    """Tokenise the rows to train and to validate on, unless the cache has them.

    Args:
        folder: has the tokenizer.
        between: called between a row and the next.

    Returns what was found of each role.
    """
    data = spec.data
    cache = Path(data.cache) if data.cache is not None else paths.data
    cache.mkdir(parents=True, exist_ok=True)
    files = {name: file_digest(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()}
    encoder: InstructionEncoder | None = None
    found, told = {}, {}
    for role in ("train", "validation"):
        names: list[str] = getattr(data, role)
        if not names:
            continue
        where = cache / key_of(names, data, files)
        if encoder is None:
            tokenizer = load_tokenizer(
                folder, remote_code=spec.huggingface.remote_code, chat_template=data.chat_template
            )
            encoder = InstructionEncoder(tokenizer, data)
        with exclusive(cache, f"{cache}: another process has been preparing rows for hours", wait_s=_WAIT_S):
            counts = prepare(where, functools.partial(_rows, encoder, names, data, between), data)
        _tell(role, counts, data.max_seq_length)
        found[role], told[role] = str(where), counts
    write_json(paths.prepared_rows, found)
    return told


def _rows(
    encoder: InstructionEncoder, names: list[str], data: InstructionData, between: Callable[[], None]
) -> Iterator[TokenRow]:
    for row in encoder.rows(records(names, data, learns=True)):
        between()
        yield row


def _tell(role: str, counts: RowCounts, limit: int) -> None:
    told = f"{counts.tokens} tokens, {counts.learned} of them learned, longest {counts.longest}"
    log(f"{role}: {counts.rows} rows, {told}")
    example = f" (as {counts.examples[0]})" if counts.examples else ""
    for number, what in (
        (counts.cut, f"{role} rows are cut to {limit} tokens"),
        (counts.too_long, f"{role} rows of more than {limit} tokens are left out{example}"),
        (counts.without_label, f"{role} rows have nothing to learn within {limit} tokens and are left out{example}"),
        (counts.joined, f"{role} rows have a token of both prompt and answer, which is learned; end prompts without a "
                        "space"),
    ):  # fmt: skip
        if number:
            log(f"{number} {what}")


def prepared(stage: HfStage, role: Literal["train", "validation"]) -> Path:
    """The folder of a role's rows. Raises DataError."""
    found = (read_object(stage.paths.prepared_rows) or {}).get(role)
    if not isinstance(found, str):
        raise DataError(f"{stage.paths.prepared_rows}: does not say where the {role} rows are")
    return Path(found)
