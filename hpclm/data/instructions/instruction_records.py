"""A row of instructions and answers, whatever its form: who says what.

Forms: Alpaca's (`instruction`, `input`, `output`; LLaMA-Factory adds `system` and `history`), OpenAI's `messages`
(`role`, `content`), sharegpt's `conversations` (`from`, `value`), and pairs of `prompt` and `completion` (TRL).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpclm.core.fine_tune_spec import InstructionData, RowFormat
from hpclm.core.nearest import nearest_name
from hpclm.data.rows import has_surrogate, kind_of, word
from hpclm.data.template_text import FIELD, without_markers

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
# sharegpt's names and others' for the same
_ROLE_NAMES: dict[str, Role] = {
    **{role: role for role in ROLES},
    "human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool", "developer": "system",
}  # fmt: skip
_KEYS: dict[RowFormat, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "messages": ("messages", "conversations", "system"),
    "prompt-completion": ("prompt", "completion", "system"),
}
# Each once, in this order.
KEYS: tuple[str, ...] = tuple(dict.fromkeys(key for keys in _KEYS.values() for key in keys))


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    text: str


@dataclass(frozen=True)
class Record:
    """A row.

    Attributes:
        where: its file and line.
        turns: in their order.
        input: of Alpaca's rows, which the last instruction is about; "" for none.
    """

    where: str
    turns: tuple[Turn, ...]
    input: str = ""

    @property
    def answer(self) -> str | None:
        """The last answer, None where the row has none."""
        return self.turns[-1].text if self.turns and self.turns[-1].role == "assistant" else None

    @property
    def asked(self) -> tuple[Turn, ...]:
        """All before the last answer."""
        return self.turns[:-1] if self.answer is not None else self.turns


class RecordError(ValueError):
    """What is wrong with a row."""


def record(row: Mapping[str, object], where: str, data: InstructionData, *, learns: bool) -> Record:
    """The row as turns. Raises RecordError.

    Args:
        learns: whether it must have an answer to learn.
    """
    names = {key: key for key in KEYS if key not in data.columns} | {name: key for key, name in data.columns.items()}
    named = {names.get(key, key): value for key, value in row.items() if key in names or key not in data.columns}
    if data.row_text is not None:
        made = _of_fields(row, where, data.row_text, keeps_space=data.template == "plain")
    else:
        form = data.format if data.format != "auto" else _form_of(named, row)
        made = {"alpaca": _alpaca, "messages": _messages, "prompt-completion": _pair}[form](named, where, data)
    if data.system is not None and made.turns and made.turns[0].role != "system":
        made = Record(made.where, (Turn("system", data.system), *made.turns), made.input)
    if learns and not any(turn.role == "assistant" and turn.text.strip() for turn in made.turns):
        raise RecordError("has no answer to learn; add it, or remove the row")
    if not any(turn.role != "assistant" for turn in made.turns):
        raise RecordError("has nothing but an answer; add what it answers")
    return made


def _of_fields(row: Mapping[str, object], where: str, text: str, *, keeps_space: bool) -> Record:
    """A task template's row. The space before an answer is the answer's, as tokenizers have it."""
    text = without_markers(text).strip()
    *_, last = FIELD.finditer(text)
    asked = FIELD.sub(lambda found: _field(row, found[1], required=True), text[: last.start()])
    answer = _field(row, last[1], required=False).rstrip(" ")  # as NeMo strips the whole
    prompt = asked.rstrip()
    if answer:
        answer = asked[len(prompt) :] + answer if keeps_space else answer.strip()
    return Record(where, (Turn("user", prompt.lstrip(" ")), *([Turn("assistant", answer)] if answer else [])))


def _field(row: Mapping[str, object], name: str, *, required: bool) -> str:
    value = row.get(name)
    if value is None:
        if required:
            near = nearest_name(name, row)
            hint = f"did you mean {word(near)}?" if near else "add it, or correct instructions.row_text"
            raise RecordError(f"has no {name!r}, which instructions.row_text names; {hint}")
        return ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else _checked(value, name)


def _form_of(named: Mapping[str, object], row: Mapping[str, object]) -> RowFormat:
    if "messages" in named or "conversations" in named:
        return "messages"
    if "instruction" in named:
        return "alpaca"
    if "prompt" in named:
        return "prompt-completion"
    known = ("instruction", "messages", "conversations", "prompt")
    near = next((f"{word(key)} may be {near}: " for key in row if (near := nearest_name(key, known))), "")
    raise RecordError(
        f"has none of the keys {', '.join(known)}; {near}name the row's own by instructions.columns, as in "
        "{instruction: question, output: answer}"
    )


def _text(named: Mapping[str, object], key: str, *, required: bool = False) -> str:
    value = named.get(key)
    if value is None:
        if required:
            raise RecordError(f"has no {key!r}; add it, or name the row's own key by instructions.columns")
        return ""
    return _checked(value, key)


def _checked(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{word(key)} is {kind_of(value)}; write it as text in quotes")
    if has_surrogate(value):
        raise RecordError(f"{word(key)} has half of a surrogate pair, which is not a character; correct the \\u escape")
    return value


def _alpaca(named: Mapping[str, object], where: str, data: InstructionData) -> Record:
    turns = [Turn("system", system)] if (system := _text(named, "system")) else []
    history = named.get("history")
    for pair in history if isinstance(history, list) else []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError("history is not a list of pairs; write [[question, answer], …]")
        turns += [Turn("user", _checked(pair[0], "history")), Turn("assistant", _checked(pair[1], "history"))]
    if history is not None and not isinstance(history, list):
        raise RecordError(f"history is {kind_of(history)}; write a list of pairs")
    turns.append(Turn("user", _text(named, "instruction", required=True)))
    output = _text(named, "output")
    return Record(where, (*turns, *([Turn("assistant", output)] if output else [])), _text(named, "input"))


def _pair(named: Mapping[str, object], where: str, data: InstructionData) -> Record:
    if isinstance(named.get("prompt"), list):
        both = [*_listed(named["prompt"]), *_listed(named.get("completion") or [])]
        return Record(where, _turns(both, data))
    turns = [Turn("system", system)] if (system := _text(named, "system")) else []
    turns.append(Turn("user", _text(named, "prompt", required=True)))
    completion = _text(named, "completion")
    return Record(where, (*turns, *([Turn("assistant", completion)] if completion else [])))


def _messages(named: Mapping[str, object], where: str, data: InstructionData) -> Record:
    found = named.get("messages", named.get("conversations"))
    if found is None:
        raise RecordError("has no 'messages' (or 'conversations'); add it, or name it by instructions.columns")
    turns = _turns(_listed(found), data)
    system = _text(named, "system")
    return Record(where, (Turn("system", system), *turns) if system else turns)


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise RecordError(f"messages are {kind_of(value)}; write a list of objects with role and content")
    return value


def _turns(messages: list[object], data: InstructionData) -> tuple[Turn, ...]:
    own = {name: role for role, name in data.roles.items()}
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise RecordError(f"message {number} is {kind_of(message)}; write an object with role and content")
        name = message.get("role", message.get("from"))
        role = own.get(str(name), _ROLE_NAMES.get(str(name)))
        if role not in ROLES:
            raise RecordError(
                f"message {number} has the role {str(name)[:40]!r}; roles are {', '.join(ROLES)}, others are named by "
                "instructions.roles, as in {user: human}"
            )
        if message.get("tool_calls"):
            raise RecordError(
                f"message {number} calls tools (tool_calls), which cannot be learned here; remove the row"
            )
        content = _joined(message.get("content", message.get("value")), number)
        if content is None:
            raise RecordError(f"message {number} has no content (or value); add it, or remove the message")
        turns.append(Turn(role, _checked(content, f"message {number}")))  # type: ignore[arg-type]
    if not turns:
        raise RecordError("has no messages; add them, or remove the row")
    return tuple(turns)


def _joined(content: object, number: int) -> object:
    """OpenAI's parts of a message, [{"type": "text", "text": …}, …], as one text."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = str(part.get("type"))[:40] if isinstance(part, Mapping) else kind_of(part)
            raise RecordError(f"message {number} has a part that is no text ({kind}); remove the row")
        texts.append(part["text"])
    return "".join(texts)
