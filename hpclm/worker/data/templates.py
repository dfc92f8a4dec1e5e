"""NeMo's prompt templates: a row and a template become token ids with slots for virtual tokens.

NeMo's rules (nemo/collections/nlp/data/language_modeling/megatron/gpt_prompt_learning_dataset.py) hold but for its
bugs: fields are filled in one pass, so a value that contains "{answer}" stays text; no test row is ever dropped; and
the prompt and the answer are tokenised apart, so that training and inference see the same prompt tokens and the mask
starts exactly at the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hpclm.errors import DataError
from hpclm.plan.spec import TaskTemplate
from hpclm.worker.tokenizer import Tokenizer

VIRTUAL = re.compile(r"<\|VIRTUAL_PROMPT_(\d+)\|>")
FIELD = re.compile(r"\{(.*?)\}")
_SLOT = -1


@dataclass(frozen=True)
class Example:
    """A row as the model sees it.

    Attributes:
        tokens: ids, the padding id at virtual slots.
        virtual: per position the number of the virtual token there, -1 elsewhere.
        loss_mask: per position 1.0 where that token is to be predicted.
        taskname, task: the row's template by name, and its place in the recipe.
        index: place of the row among all rows of its files.
        prompt, answer: the text in front of the answer, and the answer (None where the row has none).
        truncated: tokens cut off to fit.
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


class Template:
    """One task's template, ready to fill.

    Args:
        with_virtual: False leaves the virtual tokens out, to ask the model alone.
    """

    def __init__(
        self,
        template: TaskTemplate,
        task: int,
        tokenizer: Tokenizer,
        *,
        max_seq_length: int,
        add_bos: bool,
        add_eos: bool,
        with_virtual: bool = True,
    ) -> None:
        self.spec, self.task, self.tokenizer = template, task, tokenizer
        self.max_seq_length, self.add_bos, self.add_eos = max_seq_length, add_bos, add_eos
        self.with_virtual = with_virtual
        text = template.prompt_template
        marker = f"{{{template.answer_field}}}" if template.answer_field else None
        self.has_answer = marker is not None and marker in text
        self.before, self.after = text.split(marker, 1) if self.has_answer and marker else (text, "")

    def example(self, row: dict[str, Any], index: int, *, training: bool) -> Example | None:
        """Fill the template with a row.

        For training, prompt and answer: None when it is too long and the template has no `truncate_field`. Otherwise
        the prompt alone; a too long one loses its beginning if there is no field to cut.
        """
        budget = self.max_seq_length
        answer = self._answer(row)
        # the space in front of an answer belongs to its first token, as in "… Answer: yes"
        lead = " " if self.before.endswith(" ") else ""
        tail = self.tokenizer.encode(lead + answer + self._fill(self.after, row)) if training and answer else []
        if training and self.add_eos:
            tail.append(self.tokenizer.eos_id)
        tokens, virtual, text = self._prompt(row, drop_space=bool(lead))
        excess = len(tokens) + len(tail) - budget
        truncated = 0
        if excess > 0 and self.spec.truncate_field:
            row, truncated = self._cut(row, excess)
            tokens, virtual, text = self._prompt(row, drop_space=bool(lead))
            excess = len(tokens) + len(tail) - budget
        if excess > 0 and training:
            return None
        if excess > 0:
            tokens, virtual = _without_beginning(tokens, virtual, excess)
            truncated += excess
        mask = [0.0] * len(tokens) if self.spec.answer_only_loss else [float(number == _SLOT) for number in virtual]
        return Example(
            tokens=tokens + tail,
            virtual=virtual + [_SLOT] * len(tail),
            loss_mask=mask + [1.0] * len(tail),
            taskname=self.spec.taskname,
            task=self.task,
            index=index,
            prompt=text,
            answer=answer if self.spec.answer_field and self.spec.answer_field in row else None,
            truncated=truncated,
        )

    def _answer(self, row: dict[str, Any]) -> str:
        field = self.spec.answer_field
        return str(row.get(field, "")).rstrip(" ") if field and self.has_answer else ""

    def _fill(self, text: str, row: dict[str, Any]) -> str:
        return FIELD.sub(lambda match: str(row.get(match[1], "")), text)

    def _prompt(self, row: dict[str, Any], *, drop_space: bool) -> tuple[list[int], list[int], str]:
        """Ids and virtual slots of everything before the answer, and its text without the slots."""
        pieces = VIRTUAL.split(self.before)
        tokens: list[int] = [self.tokenizer.bos_id] if self.add_bos else []
        virtual = [_SLOT] * len(tokens)
        texts = []
        for place, piece in enumerate(pieces):
            if place % 2:
                if self.with_virtual:
                    count = self.spec.virtual_token_splits[int(piece)]
                    start = sum(self.spec.virtual_token_splits[: int(piece)])
                    tokens += [self.tokenizer.pad_id] * count
                    virtual += range(start, start + count)
                continue
            text = self._fill(piece, row)
            if not tokens:
                # nothing stands in front of it, so a space here would be one that no text begins with
                text = text.lstrip(" ")
            if place == len(pieces) - 1 and (drop_space or not self.has_answer):
                text = text.rstrip(" ")
            ids = self.tokenizer.encode(text)
            tokens += ids
            virtual += [_SLOT] * len(ids)
            texts.append(text)
        return tokens, virtual, "".join(texts)

    def _cut(self, row: dict[str, Any], excess: int) -> tuple[dict[str, Any], int]:
        """The row with `excess` tokens, and one more for what joining may add, off the right of the field."""
        field = self.spec.truncate_field
        assert field is not None
        ids = self.tokenizer.encode(str(row.get(field, "")))
        kept = ids[: max(0, len(ids) - excess - 1)]
        return {**row, field: self.tokenizer.decode(kept)}, len(ids) - len(kept)


def _without_beginning(tokens: list[int], virtual: list[int], excess: int) -> tuple[list[int], list[int]]:
    """Drop the first `excess` real tokens; virtual ones stay."""
    kept = []
    for token, number in zip(tokens, virtual, strict=True):
        if number == _SLOT and excess > 0:
            excess -= 1
        else:
            kept.append((token, number))
    return [token for token, _ in kept], [number for _, number in kept]


def check_row(row: Any, where: str, tasknames: list[str]) -> dict[str, Any]:
    """A row that can be filled in: an object of strings with a known `taskname`. Raises DataError."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
    for key, value in row.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {key} must be a string, not {type(value).__name__}; quote it")
    if row.get("taskname") not in tasknames:
        raise DataError(
            f"{where}: taskname {row.get('taskname')!r} has no task template; the recipe has {', '.join(tasknames)}"
        )
    return row
