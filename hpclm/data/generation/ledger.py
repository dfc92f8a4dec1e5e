"""The rows file and the record beside it: whenever the process ends, no row is lost, none is there twice, and what was
paid for is counted.

The record is written first, with the rows that are about to be added and the size of the file before them; then the
rows. What is found after a crash is brought to what the record says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpclm.core.errors import DataError, HpclmError
from hpclm.core.files import read_json, write_json
from hpclm.core.records import from_dict, to_dict
from hpclm.data.generation.instruction_rows import InstructionRow, read_rows

_VERSION = 1


@dataclass
class Counts:
    """Of all commands that made the file. `uncounted`: replies without counts of tokens; `dropped`: rows by reason."""

    requests: int = 0
    replies: int = 0
    failed_tries: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count


@dataclass
class State:
    """The record. `rows`: in the file, with `pending`, those added last; `size`: bytes of the file before these."""

    options: dict[str, str]
    counts: Counts = field(default_factory=Counts)
    rows: int = 0
    size: int = 0
    pending: list[InstructionRow] = field(default_factory=list)
    version: int = _VERSION


def state_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.state.json")


class Ledger:
    """The rows file, opened to go on. Raises HpclmError or DataError where it cannot.

    Args:
        options: what decides the rows (`Options.fixed`).
    """

    def __init__(self, out: Path, options: dict[str, str]) -> None:
        self.out, self.path = out, state_path(out)
        self.is_settled = True
        found = self._read()
        if found is None:
            if out.exists() and out.stat().st_size:
                raise HpclmError(
                    f"{out} exists, and {self.path.name} is not beside it; name another --out, or move it away"
                )
            self.state, self.rows = State(options), list[InstructionRow]()
            self.note()
            return
        self.state = found
        self._refuse_changes(options)
        self._mend()
        self.rows = read_rows(out) if self.state.size or self.state.pending else []
        if len(self.rows) != self.state.rows:
            raise self._changed(f"it has {len(self.rows)} rows, not {self.state.rows}")

    @property
    def counts(self) -> Counts:
        return self.state.counts

    def add(self, rows: Sequence[InstructionRow]) -> None:
        """Rows and counts, on disk when this returns. An interrupt anywhere in it leaves what another call, or the next
        command, goes on from: the rows are then all there, or none is."""
        before = self.state
        if not self.is_settled:
            self._mend()
        state = replace(
            before, size=before.size + _size(before.pending), pending=list(rows), rows=before.rows + len(rows)
        )
        self.is_settled = False
        write_json(self.path, to_dict(state))
        self.state = state
        self._append(_data(rows))
        self.is_settled = True

    def note(self) -> None:
        """The counts alone."""
        write_json(self.path, to_dict(self.state))

    def _append(self, data: bytes) -> None:
        if not data:
            return
        try:
            with self.out.open("ab") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            error.filename = str(self.out)  # a failed write names no file
            raise

    def _read(self) -> State | None:
        try:
            raw = read_json(self.path)
            state = None if raw is None else from_dict(State, raw)
        except ValueError as error:
            raise DataError(f"{self.path}: is damaged ({error}); name another --out") from None
        if state is not None and (state.size < 0 or state.rows < 0):
            raise DataError(f"{self.path}: is damaged (a number below 0); name another --out")
        if state is not None and state.version != _VERSION:
            raise HpclmError(f"{self.path}: was written by another version of hpclm; name another --out")
        return state

    def _refuse_changes(self, options: dict[str, str]) -> None:
        before = self.state.options
        changed = [name for name in sorted({*before, *options}) if before.get(name) != options.get(name)]
        if changed:
            words = [
                "SEEDS are others" if name == "SEEDS" else f"{name} was {before.get(name)}, not {options.get(name)}"
                for name in changed
            ]
            raise HpclmError(
                f"{self.out} was begun with other options: {'; '.join(words)}. Give the same to go on, or name another "
                "--out"
            )

    def _mend(self) -> None:
        """Bring the file to what the record says: a row cut off is completed, rows not yet written are added."""
        data = _data(self.state.pending)
        try:
            with self.out.open("rb") as stream:
                whole = os.fstat(stream.fileno()).st_size
                stream.seek(min(self.state.size, whole))
                rest = stream.read(len(data) + 1)
        except FileNotFoundError:
            whole, rest = 0, b""
        if whole < self.state.size:
            raise self._changed(f"it has {whole:,} bytes, fewer than the {self.state.size:,} that were written")
        if not data.startswith(rest):
            raise self._changed("its end is not what was written")
        self._append(data[len(rest) :])

    def _changed(self, what: str) -> DataError:
        return DataError(
            f"{self.out} was changed since {self.path.name} was written: {what}; put it back, or name another --out"
        )


def _data(rows: Sequence[InstructionRow]) -> bytes:
    return "".join(row.line() for row in rows).encode()


def _size(rows: Sequence[InstructionRow]) -> int:
    return len(_data(rows))
