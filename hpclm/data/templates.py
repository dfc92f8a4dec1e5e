"""NeMo's prompt templates: a row and a template become token ids with slots for virtual tokens.

NeMo's rules (nemo/collections/nlp/data/language_modeling/megatron/gpt_prompt_learning_dataset.py) apply except for its
bugs, which `nemo_templates` reproduces: fields are filled in one pass, so a value that contains "{answer}" stays text;
no test row is ever dropped; and the prompt and the answer are tokenised separately, so that training and inference see
the same prompt tokens and the mask starts exactly at the answer. The single space in front of `{answer}` in a template
goes to the answer, whose first token it is part of, as in "… Answer: yes".
"""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.errors import DataError
from hpclm.core.spec import TaskTemplate
from hpclm.data.rows import Row
from hpclm.data.template_text import FIELD, MARKER, without_markers
from hpclm.data.tokenizers import Tokenizer

SLOT = -1


@dataclass(frozen=True)
class Example:
    """A row as the model sees it.

    Attributes:
        tokens: ids, the padding id at virtual slots.
        virtual: per position the number of the virtual token there, -1 elsewhere.
        loss_mask: per position 1.0 where that token is to be predicted.
        taskname, task: the row's template by name, and its place in the recipe.
        index: index of the row among all rows of its files.
        prompt, answer: the text in front of the answer, with a truncated field as it was truncated, and the answer
            (None where the row has none).
        truncated: tokens cut off to fit.
        first_virtual_id: where the mask counts virtual tokens, as NeMo's may, the id of the first of them as a label.
    """

    tokens: list[int]
    virtual: list[int]
    loss_mask: list[float]
    taskname: str
    task: int
    index: int
    prompt: str
    answer: str | None
    truncated: int = 0
    first_virtual_id: int | None = None

    @property
    def labels(self) -> list[int]:
        """Each token as a label: what is to be predicted where the mask counts it."""
        first = self.first_virtual_id
        if first is None:
            return self.tokens
        pairs = zip(self.tokens, self.virtual, strict=True)
        return [token if number == SLOT else first + number for token, number in pairs]

    @property
    def weight(self) -> float:
        """How many of its tokens count in the loss; the first never does."""
        return sum(self.loss_mask[1:])


class Template:
    """One task's template, ready to fill.

    Args:
        with_virtual: False leaves the virtual tokens out, to evaluate the model alone.

    Raises DataError where virtual tokens come after the answer, or do not fit in max_seq_length.
    """

    def __init__(
        self,
        template: TaskTemplate,
        task: int,
        tokenizer: Tokenizer,
        *,
        max_seq_length: int,
        min_seq_length: int = 1,
        add_bos: bool,
        add_eos: bool,
        with_virtual: bool = True,
    ) -> None:
        self.spec, self.task, self.tokenizer = template, task, tokenizer
        self.max_seq_length, self.min_seq_length = max_seq_length, min_seq_length
        self.add_bos, self.add_eos = add_bos, add_eos
        self.with_virtual = with_virtual
        text = template.prompt_template if with_virtual else without_markers(template.prompt_template)
        marker = f"{{{template.answer_field}}}" if template.answer_field else None
        self.has_answer = marker is not None and marker in text
        self.before, self.after = text.split(marker, 1) if self.has_answer and marker else (text, "")
        if behind := MARKER.search(self.after):
            raise DataError(
                f"task template {template.taskname!r}: {behind[0]} comes after {marker}, where "
                "it has no effect on the answer; move it in front of the answer"
            )
        fixed = add_bos + sum(template.virtual_token_splits) * with_virtual
        if fixed > max_seq_length:
            raise DataError(
                f"task template {template.taskname!r}: {fixed} virtual and begin tokens do not fit in {max_seq_length} "
                "tokens (data.max_seq_length, or the model's positions less generation.max_new_tokens)"
            )

    def example(self, row: Row, index: int, *, training: bool) -> Example | None:
        """Fill the template with a row.

        For training, prompt and answer: None when it is too short, or too long and there is no `truncate_field` (left)
        to cut.
        Otherwise the prompt alone; if it is too long and there is no field to truncate, it loses its beginning.
        """
        tokens, virtual, tail, text = self._tokens(row, training=training)
        length, cut = len(tokens) + len(tail), row
        while (excess := len(tokens) + len(tail) - self.max_seq_length) > 0 and self._can_cut(cut):
            cut = self._cut(cut, excess)
            tokens, virtual, tail, text = self._tokens(cut, training=training)
        if training and (excess > 0 or len(tokens) + len(tail) < self.min_seq_length):
            return None
        if excess > 0:
            tokens, virtual = self._without_beginning(tokens, virtual, excess)
        mask = [0.0] * len(tokens) if self.spec.answer_only_loss else [float(number == SLOT) for number in virtual]
        return Example(
            tokens=tokens + tail,
            virtual=virtual + [SLOT] * len(tail),
            loss_mask=mask + [1.0] * len(tail),
            taskname=self.spec.taskname,
            task=self.task,
            index=index,
            prompt=text,
            answer=row.get(self.spec.answer_field) if self.spec.answer_field else None,
            truncated=length - len(tokens) - len(tail),
        )

    def _fill(self, text: str, row: Row) -> str:
        return FIELD.sub(lambda match: row.get(match[1], ""), text)

    def _tokens(self, row: Row, *, training: bool) -> tuple[list[int], list[int], list[int], str]:
        """Ids, virtual slots and (last) text of all before the answer, and ids from the answer on (training only)."""
        tokens: list[int] = [self.tokenizer.bos_id] if self.add_bos else []
        virtual = [SLOT] * len(tokens)
        pieces, texts = MARKER.split(self.before), []
        for place, piece in enumerate(pieces):
            if place % 2:
                start = sum(self.spec.virtual_token_splits[: int(piece)])
                count = self.spec.virtual_token_splits[int(piece)]
                tokens += [self.tokenizer.pad_id] * count
                virtual += range(start, start + count)
                continue
            text = self._fill(piece, row)
            if place == 0:
                text = text.lstrip(" ")
            if place == len(pieces) - 1:
                text = text.removesuffix(" ") if self._takes_space() else text
                text = text if self.has_answer else text.rstrip(" ")
            ids = self.tokenizer.encode(text)
            tokens += ids
            virtual += [SLOT] * len(ids)
            texts.append(text)
        if not tokens:
            # a model needs something to continue
            tokens, virtual = [self.tokenizer.bos_id], [SLOT]
        return tokens, virtual, self._tail(row) if training else [], "".join(texts).strip(" ")

    def _takes_space(self) -> bool:
        return self.has_answer and self.before.endswith(" ")

    def _tail(self, row: Row) -> list[int]:
        text = ""
        if self.has_answer:
            assert self.spec.answer_field is not None
            lead = " " if self._takes_space() else ""
            text = (lead + row.get(self.spec.answer_field, "") + self._fill(self.after, row)).rstrip(" ")
        return self.tokenizer.encode(text) + [self.tokenizer.eos_id] * self.add_eos

    def _can_cut(self, row: Row) -> bool:
        return self.spec.truncate_field is not None and bool(row.get(self.spec.truncate_field))

    def _cut(self, row: Row, excess: int) -> Row:
        """The row with `excess` tokens, and, as in NeMo, one more for what joining may
        add, removed from the end of the field."""
        field = self.spec.truncate_field
        assert field is not None
        count = len(self.tokenizer.encode(row[field])) - excess - 1
        return {**row, field: self.tokenizer.beginning(row[field], count)}

    def _without_beginning(self, tokens: list[int], virtual: list[int], excess: int) -> tuple[list[int], list[int]]:
        """Drop the first `excess` tokens of text; BOS and virtual tokens stay."""
        kept = []
        for place, (token, number) in enumerate(zip(tokens, virtual, strict=True)):
            is_text = number == SLOT and not (place == 0 and self.add_bos)
            if is_text and excess > 0:
                excess -= 1
            else:
                kept.append((token, number))
        return [token for token, _ in kept], [number for _, number in kept]
