"""Prompts around instructions that are plain text: Stanford Alpaca's and what others made of it."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.fine_tune_spec import PromptTemplate
from hpclm.data.instructions.instruction_records import Record, RecordError

# tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT
_BELOW = "Below is an instruction that describes a task"
_RESPOND = "Write a response that appropriately completes the request."
_WITH_INPUT = f"{_BELOW}, paired with an input that provides further context. {_RESPOND}\n\n"
_WITHOUT = f"{_BELOW}. {_RESPOND}\n\n"


@dataclass(frozen=True)
class Piece:
    """Text of a row. `learned`: it is an answer; `last`: the row's last one."""

    text: str
    learned: bool = False
    last: bool = False


def pieces(record: Record, template: PromptTemplate, end: str) -> list[Piece]:
    """The row as text, in pieces. `end`: the end token's text, where the template has it between turns.

    Raises RecordError for a row that the template cannot hold.
    """
    answer = record.answer
    if template == "llama-factory":
        return _llama_factory(record, end)
    tail = [] if answer is None else [Piece(answer, learned=True, last=True)]
    asked = [turn for turn in record.asked if turn.role != "system"]
    if len(asked) != 1 or asked[0].role != "user":
        raise RecordError(
            f"has several turns, which template: {template} cannot hold; choose template: chat, or rows of one question"
        )
    if template == "plain":
        if record.input:
            raise RecordError("has an input, which template: plain has no place for; choose template: stanford")
        if len(asked) < len(record.asked):
            raise RecordError("has a system text, which template: plain has no place for; choose template: chat")
        return [Piece(asked[0].text), *tail]
    end = "### Response:\n" if template == "axolotl" else "### Response:"
    system = next((f"{turn.text}\n\n" for turn in record.asked if turn.role == "system"), None)
    if record.input:
        text = f"### Instruction:\n{asked[0].text}\n\n### Input:\n{record.input}\n\n{end}"
        return [Piece((system or _WITH_INPUT) + text), *tail]
    return [Piece((system or _WITHOUT) + f"### Instruction:\n{asked[0].text}\n\n{end}"), *tail]


def _llama_factory(record: Record, end: str) -> list[Piece]:
    """LLaMA-Factory's template `alpaca` (data/template.py): no section for the input, one system text, and two line
    breaks after an answer's end token."""
    turns = list(record.turns)
    system = turns.pop(0).text + "\n\n" if turns and turns[0].role == "system" else _WITHOUT
    found = [Piece(system)]
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=-1)
    answered = max((number for number, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    for number, turn in enumerate(turns):
        if turn.role == "user":
            about = f"\n{record.input}" if record.input and number == last else ""
            found.append(Piece(f"### Instruction:\n{turn.text}{about}\n\n### Response:\n"))
        elif turn.role == "assistant":
            found.append(Piece(f"{turn.text}{end}\n\n", learned=True, last=number == answered))
        else:
            raise RecordError(f"has a turn of {turn.role}, which template: llama-factory cannot hold; choose chat")
    return found
