"""JSONL rows as examples. Does not import torch, since login nodes use it to check rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.core.spec import PromptData, StageSpec, TaskTemplate
from hpclm.data.nemo_templates import NemoTemplate
from hpclm.data.rows import Row, checked, lines_of
from hpclm.data.templates import Example, Template
from hpclm.data.tokenizers import SentencePieceTokenizer, Tokenizer

# The bound of NeMo's evaluation on a prompt's tokens (megatron_gpt_prompt_learning_inference.yaml, max_seq_length).
_NEMO_LONGEST = 8192


class PromptDataset:
    """The examples of some files, in the order of files and lines.

    Args:
        data: unless `semantics` is strict, rows are read by `NemoTemplate`, which may also leave out test rows.
        training: prompt and answer; a row that does not fit is left out. Otherwise only prompts, of every row.
        frozen: tasks that are not trained; their rows are not used.

    Attributes:
        left_out: indices, among all rows, of those left out.
        of_frozen_tasks: rows of such tasks.
        truncated: rows that lost tokens to fit.
        limit: the most tokens of an example.
    """

    def __init__(
        self,
        files: list[str],
        templates: list[TaskTemplate],
        tokenizer: Tokenizer,
        data: PromptData,
        *,
        training: bool,
        with_virtual: bool = True,
        frozen: Sequence[str] = (),
    ) -> None:
        self.limit = data.max_seq_length
        ready = {
            template.taskname: _ready(template, task, tokenizer, data, with_virtual=with_virtual)
            for task, template in enumerate(templates)
        }
        self.examples: list[Example] = []
        self.left_out: list[int] = []
        self.of_frozen_tasks = 0
        by_name = {template.taskname: template for template in templates}
        for index, row in enumerate(read_rows(files, by_name, training=training)):
            if row["taskname"] in frozen:
                self.of_frozen_tasks += 1
                continue
            example = ready[row["taskname"]].example(row, index, training=training)
            if example is None:
                self.left_out.append(index)
            else:
                self.examples.append(example)
        self.truncated = sum(example.truncated > 0 for example in self.examples)
        if not self.examples:
            raise DataError(
                f"{', '.join(files)}: no usable row is left"
                + (f"; all {self.of_frozen_tasks} belong to frozen tasks" if self.of_frozen_tasks else "")
                + (f"; {self.skipped} {_unfit(data)}" if self.skipped else "")
            )

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def skipped(self) -> int:
        """How many rows were left out."""
        return len(self.left_out)


def _ready(
    template: TaskTemplate, task: int, tokenizer: Tokenizer, data: PromptData, *, with_virtual: bool
) -> Template | NemoTemplate:
    # only transformers' tokenizers did it
    strips = data.semantics == "nemo-1.21" and not isinstance(tokenizer, SentencePieceTokenizer)
    kind = partial(NemoTemplate, strips=strips) if data.as_nemo else Template
    return kind(
        template,
        task,
        tokenizer,
        max_seq_length=data.max_seq_length,
        min_seq_length=data.min_seq_length,
        add_bos=data.add_bos,
        add_eos=data.add_eos,
        with_virtual=with_virtual,
    )


def _unfit(data: PromptData) -> str:
    """Why rows are left out."""
    short = f"are shorter than {data.min_seq_length} tokens or " if data.min_seq_length > 1 else ""
    return f"{short}do not fit in {data.max_seq_length} tokens"


def read_rows(files: list[str], templates: dict[str, TaskTemplate], *, training: bool) -> list[Row]:
    """The rows of all files. Raises DataError with file and line."""
    rows = []
    for name in files:
        try:
            with open_file(Path(name)) as file:
                for number, line in lines_of(file):
                    rows.append(checked(line, f"{name}:{number}", templates, learns=training))
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from error
    return rows


def rows_to_answer(spec: StageSpec, templates: list[TaskTemplate], tokenizer: Tokenizer) -> PromptDataset:
    """A stage's test rows as prompts that leave room for an answer among the model's positions."""
    assert spec.data is not None
    assert spec.generation is not None
    data, wanted = spec.data, spec.generation
    room = spec.model.max_position_embeddings - wanted.max_new_tokens
    # NeMo's evaluation does not know the training's max_seq_length
    limit = min(room, _NEMO_LONGEST if data.as_nemo else data.max_seq_length)
    data = replace(data, add_bos=data.add_bos if wanted.add_bos is None else wanted.add_bos, max_seq_length=limit)
    with_virtual = spec.prompts is not None
    return PromptDataset(data.test, templates, tokenizer, data, training=False, with_virtual=with_virtual)
