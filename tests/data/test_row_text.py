"""`instructions.row_text`: rows of any keys for engine hf, with the text that a task template gives them."""

from __future__ import annotations

from typing import Any

import pytest

from hpclm.core.fine_tune_spec import InstructionData
from hpclm.core.spec import TaskTemplate
from hpclm.data.instructions.instruction_prompts import pieces
from hpclm.data.instructions.instruction_records import RecordError, record
from hpclm.data.templates import Template
from hpclm.data.tokenizers import Tokenizer

# NeMo's documentation of prompt learning, and the assistant's rows
TEXTS = {
    "sentiment": ("<|VIRTUAL_PROMPT_0|> {sentence} sentiment: {label}", {"sentence": "Good sales {x}", "label": "yes"}),
    "two markers": (
        "<|VIRTUAL_PROMPT_0|> Context: {context} <|VIRTUAL_PROMPT_1|> Answer: {answer}",
        {"context": "  two  spaces", "answer": " known "},
    ),
    "no space": ("{q}\n{answer}", {"q": "1+1", "answer": "2"}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_one_of_the_task_template(name: str) -> None:
    """What prompt learning with engine megatron asks the model alone, virtual tokens left out."""
    text, row = TEXTS[name]
    found = record(row, "rows:1", InstructionData(template="plain", row_text=text), learns=True)
    joined = "".join(piece.text for piece in pieces(found, "plain", ""))
    answer = text.rpartition("{")[2].rstrip("}")
    splits = [1] * text.count("<|VIRTUAL")
    template = TaskTemplate("t", text, len(splits), splits, answer_field=answer)
    tokenizer = Tokenizer.train([text] * 5, 300)
    made = Template(template, 0, tokenizer, max_seq_length=200, add_bos=False, add_eos=False, with_virtual=False)
    example = made.example(row, 0, training=True)
    assert example is not None
    assert joined == tokenizer.decode(example.tokens)
    assert found.answer is not None
    assert found.answer.strip() == row[answer].strip()


def test_other_templates_stand_around_it() -> None:
    data = InstructionData(template="stanford", row_text="{sentence} sentiment: {label}")
    found = record({"sentence": "Fine", "label": "good"}, "rows:1", data, learns=True)
    first, answer = pieces(found, "stanford", "")
    assert first.text.endswith("### Instruction:\nFine sentiment:\n\n### Response:")
    assert answer.text == "good"
    asked = record({"sentence": "Fine"}, "rows:1", data, learns=False)
    assert asked.answer is None
    assert record({"sentence": 3, "label": 2.5}, "rows:1", data, learns=True).answer == "2.5"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"sentense": "a", "label": "b"}, "has no 'sentence', which instructions.row_text names; did you mean"),
        ({"label": "b"}, "add it, or correct instructions.row_text"),
        ({"sentence": ["a"], "label": "b"}, "is a list"),
        ({"sentence": "a"}, "has no answer to learn"),
    ],
)
def test_rows_that_lack_a_field_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        record(row, "rows:1", InstructionData(row_text="{sentence} is {label}"), learns=True)
