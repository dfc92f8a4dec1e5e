"""Tokenised rows on disk: made once, by one process, under a key of everything that they depend on.

FOLDER/KEY/ has `tokens` (int32), `learned` (one byte a token) and `starts` (int64, one more than there are rows), and
`rows.json`, sealed, which is written last: a folder with it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpclm.core.errors import DamagedError, DataError
from hpclm.core.files import open_file
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.data.ranks.instruction_tokens import TokenRow

# Of what is written and how; another one makes everything anew.
_VERSION = 1
_FLUSH = 1 << 20
_EXAMPLES = 3
# What does not change a row's tokens.
_APART = ("train", "validation", "test", "packing", "cache", "chat_template", "metrics")


@dataclass
class RowCounts:
    """What became of a file's rows. `tokens` and `learned` are of those that are kept."""

    rows: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    cut: int = 0
    too_long: int = 0
    without_label: int = 0
    joined: int = 0
    examples: list[str] = field(default_factory=list)


def key_of(paths: list[str], data: InstructionData, tokenizer: dict[str, str]) -> str:
    """A digest of the files' bytes, of how they are read, and of the tokenizer (its files' digests by name)."""
    digest = hashlib.sha256()
    how = {name: value for name, value in to_dict(data).items() if name not in _APART}
    digest.update(json.dumps([_VERSION, how, tokenizer, len(paths)], sort_keys=True).encode())
    for path in paths:
        digest.update(file_digest(Path(path)).encode())
    if data.chat_template is not None:
        digest.update(file_digest(Path(data.chat_template)).encode())
    return digest.hexdigest()[:32]


def file_digest(path: Path) -> str:
    """Raises DataError for one that cannot be read."""
    try:
        digest = hashlib.sha256()
        with open_file(path) as stream:
            while block := stream.read(_FLUSH):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def prepare(folder: Path, rows: Callable[[], Iterable[TokenRow]], data: InstructionData) -> RowCounts:
    """Write the rows into `folder` unless they are there. One process at a time. Raises DataError."""
    found = _complete(folder)
    if found is not None:
        return found
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts = RowCounts()
    starts = [0]
    with (partial / "tokens").open("wb") as tokens, (partial / "learned").open("wb") as learned:
        for row in rows():
            kept = kept_row(row, data, counts)
            if kept is None:
                continue
            tokens.write(np.asarray(kept.tokens, dtype=np.int32).tobytes())
            learned.write(np.asarray(kept.learned, dtype=np.uint8).tobytes())
            starts.append(starts[-1] + len(kept.tokens))
        np.asarray(starts, dtype=np.int64).tofile(partial / "starts")
        for stream in (tokens, learned):
            stream.flush()
            os.fsync(stream.fileno())
    if not counts.rows:
        raise DataError(_nothing_left(counts))
    write_sealed(partial / "rows.json", to_dict(counts))
    if folder.is_dir():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    partial.replace(folder)
    return counts


def _nothing_left(counts: RowCounts) -> str:
    why = []
    if counts.too_long:
        why.append(f"{counts.too_long} are too long")
    if counts.without_label:
        why.append(f"{counts.without_label} have no token to learn within instructions.max_seq_length")
    named = " and ".join(why) or "the files contain none"
    example = f" (as {counts.examples[0]})" if counts.examples else ""
    return f"no row is left to learn: {named}{example}; {'raise it, or ' if why else ''}add rows with answers"


def kept_row(row: TokenRow, data: InstructionData, counts: RowCounts) -> TokenRow | None:
    """The row as it is learned, and counted; None where it is left out. Raises DataError where it is refused."""
    limit = data.max_seq_length
    if len(row.tokens) > limit:
        if data.too_long == "refuse":
            raise DataError(
                f"{row.where}: has {len(row.tokens)} tokens, more than max_seq_length {limit}; raise it, or "
                "choose instructions.too_long: cut or leave-out"
            )
        if data.too_long == "leave-out":
            counts.too_long += 1
            _note(counts, row)
            return None
        counts.cut += 1
        row = TokenRow(row.where, row.tokens[:limit], row.learned[:limit], row.joined)
    # the first token is no label: nothing precedes it
    labels = sum(row.learned[1:])
    if not labels:
        counts.without_label += 1
        _note(counts, row)
        return None
    counts.rows += 1
    counts.tokens += len(row.tokens)
    counts.learned += labels
    counts.longest = max(counts.longest, len(row.tokens))
    counts.joined += row.joined
    return row


def _note(counts: RowCounts, row: TokenRow) -> None:
    if len(counts.examples) < _EXAMPLES:
        counts.examples.append(row.where)


def _complete(folder: Path) -> RowCounts | None:
    """None where rows are missing, or their files are not as long as their number says."""
    try:
        found = read_sealed(folder / "rows.json")
        if found is None:
            return None
        counts = from_dict(RowCounts, found, where=str(folder))
        sizes = {"tokens": 4 * counts.tokens, "learned": counts.tokens, "starts": 8 * (counts.rows + 1)}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (DamagedError, OSError, ValueError):
        return None
    return counts if whole else None


class PreparedRows:
    """The rows of a folder, read from disk as they are asked for."""

    def __init__(self, folder: Path) -> None:
        counts = _complete(folder)
        if counts is None:
            raise DataError(f"{folder}: holds no complete rows; remove it, and they are made again")
        self.counts = counts
        self.starts: npt.NDArray[np.int64] = np.fromfile(folder / "starts", dtype=np.int64)
        self._tokens = np.memmap(folder / "tokens", dtype=np.int32, mode="r")
        self._learned = np.memmap(folder / "learned", dtype=np.uint8, mode="r")
        self.lengths: npt.NDArray[np.int64] = np.diff(self.starts)
        # labels of each row, for the weight of a batch: the first token of a row is none
        sums = np.concatenate([[0], np.cumsum(self._learned, dtype=np.int64)])
        first = np.asarray(self._learned[self.starts[:-1]], dtype=np.int64)
        self.labels: npt.NDArray[np.int64] = sums[self.starts[1:]] - sums[self.starts[:-1]] - first

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Tokens, and which of them are labels."""
        place = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return np.asarray(self._tokens[place]), np.asarray(self._learned[place], dtype=np.bool_)
