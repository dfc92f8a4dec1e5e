"""Rows as NeMo reads them, including its bugs: `data.semantics: nemo`.

Source: NeMo r1.22, nemo/collections/nlp/data/language_modeling/megatron/gpt_prompt_learning_dataset.py, with the
tokenizer of nemo/collections/nlp/modules/common/huggingface/auto_tokenizer.py. What differs from `templates.Template`:

- fields are put in one after another, so a value that contains "{answer}" gets the answer inserted;
- prompt and answer are one text, and the answer's place in it is guessed from the length of its own tokens;
- special tokens in a row's text are special tokens;
- a truncated example has lost its BOS and EOS, and its mask still counts the EOS: it starts one token early, which may
  be a virtual token, and then the id that NeMo's tokenizer gives that token is its label;
- a row that does not fit is dropped, even a test row;
- a test row that contains its answer shows it to the model.

One case is refused instead of reproduced, since NeMo fails on it too: a row whose text contains a virtual token's name.
"""

from __future__ import annotations

import re

from hpclm.core.errors import DataError
from hpclm.core.spec import TaskTemplate
from hpclm.data.rows import Row
from hpclm.data.template_text import FIELD, MARKER, marker_of
from hpclm.data.templates import SLOT, Example
from hpclm.data.tokenizers import Tokenizer


class NemoTemplate:
    """One task's template. Arguments as `templates.Template`'s.

    Args:
        strips: leave out the white space beside a virtual token, as the tokenizers of transformers up to 4.33.3 did,
            and so NeMo up to r1.21 (transformers/tokenization_utils.py, tokenize).
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
        strips: bool = False,
    ) -> None:
        self.strips = strips
        self.spec, self.task, self.tokenizer = template, task, tokenizer
        self.max_seq_length, self.min_seq_length = max_seq_length, min_seq_length
        self.add_bos, self.add_eos = add_bos, add_eos
        self.text = template.prompt_template if with_virtual else MARKER.sub("", template.prompt_template)
        self.fields = FIELD.findall(self.text)
        # a marker of a row's text that no split has stays text, as in NeMo
        self.marker = marker_of(range(len(template.virtual_token_splits)))
        self.virtual_count = template.total_virtual_tokens if with_virtual else 0
        special = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")") if special else None

    def example(self, row: Row, index: int, *, training: bool) -> Example | None:
        """Fill the template with a row; None where the result is too long or too short."""
        add_eos = self.add_eos and training
        ids = [self.tokenizer.bos_id] * self.add_bos + self._ids(row, index) + [self.tokenizer.eos_id] * add_eos
        length = len(ids)
        if length > self.max_seq_length and self.spec.truncate_field in row:
            row = self._cut(row, length)
            ids = self._ids(row, index)
        if not self.min_seq_length <= len(ids) <= self.max_seq_length:
            return None
        places = iter(range(self.virtual_count))
        virtual = [next(places) if token is None else SLOT for token in ids]
        answer = self.spec.answer_field
        return Example(
            tokens=[self.tokenizer.pad_id if token is None else token for token in ids],
            virtual=virtual,
            loss_mask=self._mask(row, virtual, training=training),
            taskname=self.spec.taskname,
            task=self.task,
            index=index,
            prompt=self.marker.sub("", self._fill(row)).strip(" "),
            answer=row.get(answer) if answer else None,
            truncated=length - len(ids),
            first_virtual_id=self.tokenizer.vocab_size,
        )

    def _fill(self, row: Row) -> str:
        text = self.text
        for field in self.fields:
            text = text.replace("{" + field + "}", row.get(field, ""))
        return text.strip(" ")

    def _ids(self, row: Row, index: int) -> list[int | None]:
        """Token ids, None at virtual slots: the k-th slot gets the k-th virtual token,
        whatever the number of its marker."""
        ids: list[int | None] = []
        pieces = self.marker.split(self._fill(row))
        for place, piece in enumerate(self._stripped(pieces) if self.strips else pieces):
            if place % 2:
                count = self.spec.virtual_token_splits[int(piece) : int(piece) + 1]
                ids += [None] * sum(count)
            else:
                ids += self._text_ids(piece)
        if ids.count(None) != self.virtual_count:
            raise DataError(
                f"task {self.spec.taskname}, row {index + 1}: its text contains a virtual token marker, which NeMo "
                "misreads and fails on; remove it from the row, or choose data.semantics: strict"
            )
        return ids

    @staticmethod
    def _stripped(pieces: list[str]) -> list[str]:
        """Texts and, at odd places, the numbers of the markers between them."""
        made = []
        for place, piece in enumerate(pieces):
            after, before = place > 0, place < len(pieces) - 1
            left = piece.lstrip() if after else piece
            made.append(piece if place % 2 else left.rstrip() if before else left)
        return made

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a piece between virtual tokens, with special tokens recognised."""
        if self._special is None:
            return self.tokenizer.encode(text)
        ids: list[int] = []
        for place, part in enumerate(self._special.split(text)):
            ids += [self.tokenizer.special_ids[part]] if place % 2 else self.tokenizer.encode(part)
        return ids

    def _cut(self, row: Row, length: int) -> Row:
        """The row with overflow + 1 tokens removed from the end of its `truncate_field`."""
        field = self.spec.truncate_field
        assert field is not None
        ids = self._text_ids(row[field])
        kept = ids[: -min(length - self.max_seq_length + 1, len(ids))] if ids else ids
        return {**row, field: self.tokenizer.decode(kept)}

    def _mask(self, row: Row, virtual: list[int], *, training: bool) -> list[float]:
        answer = self.spec.answer_field
        if not (self.spec.answer_only_loss and training) or answer is None:
            return [float(number == SLOT) for number in virtual]
        place = self.text.find("{" + answer + "}")
        lead = " " if place > 0 and self.text[place - 1] == " " else ""
        start = len(virtual) - len(self._text_ids(lead + row[answer])) - self.add_eos
        return [float(position >= start) for position in range(len(virtual))]
