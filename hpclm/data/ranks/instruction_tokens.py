"""Rows of instructions as tokens, and which of them have a loss, with a tokenizer of transformers.

A row is tokenised as one text, and the spans of its answers are found by the offsets of its tokens: tokenised apart,
answers would not have the tokens that their text has. A chat template's spans are found by rendering the row up to
each answer; a template that renders a beginning differently once something follows is refused, for nothing else would
say what is learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from hpclm.core.errors import DataError
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.data.instructions.instruction_prompts import pieces
from hpclm.data.instructions.instruction_records import Record, RecordError, Turn
from hpclm.data.instructions.template_syntax import marks_answers

_ROWS = 512
_SHOWN = 200


@dataclass
class TokenRow:
    """A row's tokens. `learned`: of each, whether it is a label; `joined`: a token holds the end of a prompt and the
    beginning of its answer."""

    where: str
    tokens: list[int]
    learned: list[bool]
    joined: bool = False


@dataclass
class _Text:
    """A row's text and the spans that are learned. `special`: the tokenizer adds its begin token."""

    text: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    special: bool = False


class InstructionEncoder:
    """Encodes rows.

    Raises DataError for a tokenizer that cannot do what the recipe asks.
    """

    def __init__(self, tokenizer: Any, data: InstructionData) -> None:
        self.tokenizer, self.data = tokenizer, data
        if not tokenizer.is_fast:
            raise DataError(
                f"{tokenizer.name_or_path}: it has no tokenizer.json, so the places of its tokens in the text "
                "are not known; convert it: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            )
        self.chat = data.template == "chat"
        if self.chat and not tokenizer.chat_template:
            raise DataError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; give instructions.chat_template, or "
                "choose instructions.template: stanford"
            )
        self.end: int | None = tokenizer.eos_token_id
        if self.end is None:
            raise DataError(
                f"{tokenizer.name_or_path}: its tokenizer has no end token; add eos_token to its configuration"
            )
        self.end_text: str = tokenizer.eos_token or ""
        special = {str(one) for one in tokenizer.added_tokens_decoder.values() if one.special}
        self.special = tuple(sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True))

    def rows(self, records: Iterable[Record]) -> Iterator[TokenRow]:
        """Every row as tokens, whatever its length. Raises DataError for a row that the template cannot hold."""
        stream = iter(records)
        while some := list(islice(stream, _ROWS)):
            texts = [self._told(self._text, one) for one in some]
            for one, text, (tokens, offsets) in zip(some, texts, self._tokens(texts), strict=True):
                yield self._row(one, text, tokens, offsets)

    def ends(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's end token, and what the chat template ends answers with."""
        found = [self.end or 0]
        if self.chat:
            try:
                told = self._rendered((Turn("user", "a"), Turn("assistant", "b")), "").text.rstrip()
            except RecordError:
                return found
            named = next((one for one in self.special if told.endswith(one)), None)
            if named is not None:
                found.append(int(self.tokenizer.convert_tokens_to_ids(named)))
        return list(dict.fromkeys(found))

    def prompt(self, record: Record) -> tuple[str, list[int]]:
        """What precedes the last answer, as text and as tokens."""
        text = self._told(self._asked, record)
        ((tokens, _),) = self._tokens([text])
        while text.special and tokens and tokens[-1] == self.end:
            tokens = tokens[:-1]  # of a tokenizer that ends every text
        return text.text, tokens

    def _told(self, make: Any, record: Record) -> _Text:
        try:
            made: _Text = make(record)
        except RecordError as error:
            raise DataError(f"{record.where}: {error}") from None
        return made

    def _tokens(self, texts: Sequence[_Text]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        if not texts:
            return []
        found = self.tokenizer(
            [one.text for one in texts],
            add_special_tokens=texts[0].special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return list(zip(found["input_ids"], found["offset_mapping"], strict=True))

    def _row(self, record: Record, text: _Text, tokens: list[int], offsets: list[tuple[int, int]]) -> TokenRow:
        if self.data.learn == "everything":
            learned, joined = [True] * len(tokens), False
        else:
            learned, joined = _within(text.spans, offsets)
        tokens = list(tokens)
        if record.answer is not None and not self._is_ended(tokens, text):
            tokens.append(self.end or 0)
            learned.append(True)
        elif text.special and record.answer is not None and tokens[-1] == self.end:
            learned[-1] = True  # which the tokenizer added
        return TokenRow(record.where, tokens, learned, joined)

    def _is_ended(self, tokens: list[int], text: _Text) -> bool:
        if self.chat:
            return text.text.rstrip().endswith(self.special)
        # after an answer of this template there are two line breaks
        return self.data.template == "llama-factory" or (bool(tokens) and tokens[-1] == self.end)

    def _text(self, record: Record) -> _Text:
        if self.chat:
            return self._rendered(record.turns, record.input)
        found = _Text("", special=True)
        for piece in pieces(record, self.data.template, self.end_text):
            start = len(found.text)
            found.text += piece.text
            if piece.learned and (piece.last or self.data.learn != "last-answer"):
                found.spans.append((start, len(found.text)))
        return found

    def _asked(self, record: Record) -> _Text:
        if self.chat:
            return _Text(self._render(_said(record.asked, record.input), open_answer=True))
        asked = Record(record.where, record.asked, record.input)
        return _Text("".join(piece.text for piece in pieces(asked, self.data.template, self.end_text)), special=True)

    def _rendered(self, turns: Sequence[Turn], about: str) -> _Text:
        messages = _said(turns, about)
        text = self._render(messages)
        if self.data.learn == "everything":
            return _Text(text)
        first = -1 if self.data.learn == "last-answer" else 0
        answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
        marked = self._marked(messages) if marks_answers(self.tokenizer.get_chat_template()) else []
        # in macros, and where an answer has several marks or none, their places are not the answers'
        if len(marked) == len(answers) and all(
            messages[number]["content"].strip() in text[start:end]
            for number, (start, end) in zip(answers, marked, strict=True)
        ):
            return _Text(text, marked[first:])
        return _Text(text, [self._span(text, messages, number) for number in answers[first:]])

    def _marked(self, messages: list[dict[str, str]]) -> list[tuple[int, int]]:
        """What the template says itself that the model writes."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            found: Any = render_jinja_template(
                [messages],
                chat_template=self.tokenizer.get_chat_template(),
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:
            raise _refused(error) from None
        return [(start, end) for start, end in found[1][0] if start < end]

    def _span(self, text: str, messages: list[dict[str, str]], number: int) -> tuple[int, int]:
        before = self._render(messages[:number], open_answer=True) if number else self._opening(text)
        after = text if number == len(messages) - 1 else self._render(messages[: number + 1])
        if not text.startswith(before) or not text.startswith(after) or len(after) <= len(before):
            which = "its answer" if number == len(messages) - 1 else f"the answer in message {number + 1}"
            later = any(one["role"] == "assistant" for one in messages[number + 1 :])
            raise RecordError(
                f"the chat template renders {which} differently by what is around it, so what is learned cannot be "
                f"told; {'choose instructions.learn: last-answer, or ' if later else ''}give another "
                "instructions.chat_template"
            )
        said = text[len(before) : len(after)].rstrip()
        return len(before), len(before) + len(said) if said.endswith(self.special) else len(after)

    def _opening(self, text: str) -> str:
        """What precedes an answer that is the first message: templates cannot render a conversation without one."""
        asked = [{"role": "user", "content": "a"}]
        header = self._render(asked, open_answer=True).removeprefix(self._render(asked))
        place = text.find(header)
        if not header or place < 0:
            raise RecordError("begins with an answer; put the user's message before it, or remove it")
        return text[: place + len(header)]

    def _render(self, messages: list[dict[str, str]], *, open_answer: bool = False) -> str:
        try:
            made: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer)
        except Exception as error:  # jinja2's own, and whatever a template raises
            raise _refused(error) from None
        return made


def _refused(error: Exception) -> RecordError:
    said = " ".join(str(error).split())[:_SHOWN]
    return RecordError(
        f"the chat template refuses it ({type(error).__name__}: {said}); change the row, or give another "
        "instructions.chat_template"
    )


def _said(turns: Sequence[Turn], about: str) -> list[dict[str, str]]:
    """As chat templates have them; what an instruction is about is below it, as in LLaMA-Factory."""
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    if about:
        last = max(number for number, turn in enumerate(turns) if turn.role == "user")
        messages[last]["content"] += f"\n{about}"
    return messages


def _within(spans: list[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> tuple[list[bool], bool]:
    """Which tokens end in a span, and whether one of them began before it.

    Offsets that leave white space out (ByteLevel with trim_offsets) are empty where a token is nothing else, at its
    end: it belongs to the span that it ends in. What the tokenizer adds has (0, 0), which no span has inside.
    """
    learned, joined, place = [], False, 0
    for start, end in offsets:
        while place < len(spans) and end > spans[place][1]:
            place += 1
        inside = place < len(spans) and end > spans[place][0]
        learned.append(inside)
        joined = joined or (inside and start < spans[place][0])
    return learned, joined
