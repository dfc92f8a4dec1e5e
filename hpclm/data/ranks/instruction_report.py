"""Rows of instructions as a stage's model will see them, counted and shown before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclm.core.fine_tune_spec import FineTuneStageSpec, InstructionData
from hpclm.data.instructions.instruction_check import FileCheck, InstructionCheck, ShownRow
from hpclm.data.instructions.instruction_files import records
from hpclm.data.ranks.instruction_tokens import InstructionEncoder, TokenRow
from hpclm.data.ranks.model_tokenizer import load_tokenizer
from hpclm.data.ranks.prepared_rows import RowCounts, kept_row
from hpclm.data.ranks.row_packing import first_fit


def check_instructions(spec: FineTuneStageSpec, folder: Path, examples: int) -> list[InstructionCheck]:
    """Every role's rows of a stage whose model, with its tokenizer, is in `folder`; of each file `examples` are shown.

    Raises DataError for a row that cannot be used, CheckpointError for a tokenizer that cannot be loaded.
    """
    data = spec.data
    tokenizer = load_tokenizer(folder, remote_code=spec.huggingface.remote_code, chat_template=data.chat_template)
    encoder = InstructionEncoder(tokenizer, data)
    roles = ("test",) if spec.task == "evaluate" else ("train", "validation")
    found = []
    for role in roles:
        files, shown, lengths = [], [], []
        for path in getattr(data, role):
            check = _asked if role == "test" else _learned
            counts, rows, some = check(encoder, path, examples)
            files.append(counts)
            shown += rows
            lengths += some
        if files:
            packed = len(first_fit(lengths, data.max_seq_length)) if data.packing and role != "test" else None
            found.append(
                InstructionCheck(
                    spec.stage, role, data.template, data.learn, data.max_seq_length, encoder.end_text,
                    tokenizer.pad_token, files, packed, shown,
                )
            )  # fmt: skip
    return found


def _learned(encoder: InstructionEncoder, path: str, examples: int) -> tuple[FileCheck, list[ShownRow], list[int]]:
    """Counts of a file to learn from, its first rows, and the lengths of those that are kept."""
    data, counts, rows, ended = encoder.data, RowCounts(), 0, 0
    shown: list[ShownRow] = []
    lengths: list[int] = []
    ends = frozenset(encoder.ends())
    for row in encoder.rows(records([path], data, learns=True)):
        rows += 1
        kept = kept_row(row, data, counts)
        if kept is not None:
            lengths.append(len(kept.tokens))
            ended += _is_ended(ends, kept)
        if len(shown) < examples:
            shown.append(_shown(encoder, row, kept))
    made = FileCheck(
        path, rows, counts.rows, counts.tokens, counts.learned, counts.longest, counts.cut, counts.too_long,
        counts.without_label, counts.joined, ended, counts.examples,
    )  # fmt: skip
    return made, shown, lengths


def _is_ended(ends: frozenset[int], row: TokenRow) -> bool:
    return any(learned and token in ends for token, learned in zip(row.tokens, row.learned, strict=True))


def _asked(encoder: InstructionEncoder, path: str, examples: int) -> tuple[FileCheck, list[ShownRow], list[int]]:
    """The same of a file whose rows are answered: their prompts."""
    limit = encoder.data.max_seq_length
    lengths, cut = [], 0
    shown: list[ShownRow] = []
    for one in records([path], encoder.data, learns=False):
        _, tokens = encoder.prompt(one)
        cut += len(tokens) > limit
        if len(shown) < examples:
            note = f"loses its first {len(tokens) - limit} tokens" if len(tokens) > limit else ""
            kept = tokens[-limit:]
            shown.append(ShownRow(one.where, marked(encoder.tokenizer, kept, [False] * len(kept)), len(kept), 0, note))
        lengths.append(min(len(tokens), limit))
    made = FileCheck(path, len(lengths), len(lengths), sum(lengths), 0, max(lengths, default=0), cut)
    return made, shown, lengths


def _shown(encoder: InstructionEncoder, row: TokenRow, kept: TokenRow | None) -> ShownRow:
    one = kept or row
    note = ""
    if kept is None:
        note = "left out: too long" if _is_too_long(row, encoder.data) else "left out: nothing to learn"
    elif len(kept.tokens) < len(row.tokens):
        note = f"cut: {len(row.tokens) - len(kept.tokens)} more tokens"
    return ShownRow(
        row.where, marked(encoder.tokenizer, one.tokens, one.learned), len(one.tokens), sum(one.learned[1:]), note
    )


def _is_too_long(row: TokenRow, data: InstructionData) -> bool:
    return data.too_long == "leave-out" and len(row.tokens) > data.max_seq_length


def marked(tokenizer: Any, tokens: list[int], learned: list[bool]) -> str:
    """The tokens as text, what is learned between ⟦ and ⟧."""
    made, before, learning = [], "", False
    for place in range(len(tokens) + 1):
        is_learned = place < len(tokens) and learned[place]
        if is_learned == learning and place < len(tokens):
            continue
        # of the whole up to here: some tokenizers lose the space at a text's beginning
        text = tokenizer.decode(tokens[:place], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        made.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(tokens[place - 1 : place]))
        if is_learned != learning:
            made.append("⟦" if is_learned else "⟧")
        before, learning = text, is_learned
    return "".join(made)
