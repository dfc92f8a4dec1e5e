"""A row becomes ids as NeMo's rules say, and none of its bugs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm.core.errors import DataError
from hpclm.core.spec import TaskTemplate
from hpclm.data.examples import read_rows
from hpclm.data.templates import Example, Template
from hpclm.data.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["the quick brown fox jumps over the lazy dog = yes no answer: question"] * 20, 320)
SPEC = TaskTemplate("qa", "<|VIRTUAL_PROMPT_0|> Q: {question} <|VIRTUAL_PROMPT_1|> A: {answer}", 5, [3, 2])
ROW = {"taskname": "qa", "question": "the quick brown fox", "answer": "yes"}


def made(spec: TaskTemplate = SPEC, row: dict[str, Any] = ROW, *, training: bool = True, **options: Any) -> Example:
    example = template(spec, **options).example(row, 0, training=training)
    assert example is not None
    return example


def template(spec: TaskTemplate = SPEC, **options: Any) -> Template:
    return Template(spec, 0, TOKENIZER, **{"max_seq_length": 64, "add_bos": False, "add_eos": True, **options})


def masked(example: Example) -> list[int]:
    return [token for token, weight in zip(example.tokens, example.loss_mask, strict=True) if weight]


def test_virtual_tokens_are_numbered_on_through_the_splits() -> None:
    virtual = made().virtual
    assert [number for number in virtual if number >= 0] == [0, 1, 2, 3, 4]
    assert virtual[:3] == [0, 1, 2]
    assert virtual[3] == -1


def test_only_the_answer_and_the_end_count() -> None:
    assert masked(made()) == [*TOKENIZER.encode(" yes"), TOKENIZER.eos_id]
    assert masked(made(add_eos=False)) == TOKENIZER.encode(" yes")


def test_without_answer_only_loss_all_but_virtual_tokens_count() -> None:
    example = made(replace(SPEC, answer_only_loss=False))
    assert [weight for weight, number in zip(example.loss_mask, example.virtual, strict=True) if number >= 0] == [0] * 5
    assert sum(example.loss_mask) == len(example.tokens) - 5


@given(st.text(max_size=40), st.text(min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_the_prompt_is_the_same_in_training_and_in_use(question: str, answer: str) -> None:
    row = {"taskname": "qa", "question": question, "answer": answer}
    whole, prompt = made(row=row, max_seq_length=999), made(row=row, training=False, max_seq_length=999)
    assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
    assert TOKENIZER.decode(whole.tokens[len(prompt.tokens) :]) == (" " + answer).rstrip(" ")


@pytest.mark.parametrize("value", ["{answer}", "{question}", "<|VIRTUAL_PROMPT_0|>", "<|endoftext|>", "{", "$(id)"])
def test_what_a_row_holds_stays_text(value: str) -> None:
    example = made(row={**ROW, "question": value}, training=False)
    assert value in example.prompt
    assert "yes" not in example.prompt
    assert value in TOKENIZER.decode([t for t, n in zip(example.tokens, example.virtual, strict=True) if n < 0])
    assert sum(number >= 0 for number in example.virtual) == 5


def test_a_missing_field_is_empty() -> None:
    assert made(row={"taskname": "qa", "answer": "no"}).prompt == "Q:   A:"


def test_a_field_is_cut_from_the_right_to_fit() -> None:
    spec = replace(SPEC, truncate_field="question")
    row = {**ROW, "question": " ".join(["fox"] * 50)}
    example = made(spec, row, max_seq_length=32)
    assert len(example.tokens) <= 32
    assert example.truncated > 0
    assert masked(example) == masked(made())
    assert example.prompt.startswith("Q: fox fox")


def test_a_row_too_long_is_left_out_of_training_and_never_of_a_test() -> None:
    row = {**ROW, "question": " ".join(["fox"] * 50)}
    assert template(max_seq_length=32).example(row, 0, training=True) is None
    example = made(row=row, training=False, max_seq_length=32)
    assert len(example.tokens) == 32
    assert [number for number in example.virtual if number >= 0] == [0, 1, 2, 3, 4]
    assert TOKENIZER.decode(example.tokens).endswith("fox  A:")


def test_the_model_alone_gets_no_slots_and_no_space_in_front() -> None:
    example = made(training=False, with_virtual=False)
    assert set(example.virtual) == {-1}
    assert example.prompt == "Q: the quick brown fox A:"


def test_a_begin_token_stands_in_front() -> None:
    assert made(add_bos=True).tokens[0] == TOKENIZER.bos_id


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "is a list; a row must be an object"),
        ({"taskname": "qa", "question": 3}, "question is a number; write it as text"),
        ({"taskname": "other"}, "taskname 'other' has no template; templates: qa"),
        ({}, "has no taskname; add it, one of qa"),
        ({"taskname": "qa", "question": "x"}, "has no 'answer', the answer to train on"),
        ({"taskname": "qa", "question": "\ud800", "answer": "x"}, "question has half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Any, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" * 6 + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:7: ") as caught:
        read_rows([str(path)], {"qa": SPEC}, training=True)
    assert words in str(caught.value)


def test_virtual_tokens_behind_the_answer_are_refused() -> None:
    """A model asked for the answer would never see them."""
    spec = replace(SPEC, prompt_template="{question} {answer} <|VIRTUAL_PROMPT_0|>", answer_only_loss=False)
    with pytest.raises(DataError, match=r"'qa': <\|VIRTUAL_PROMPT_0\|> comes after \{answer\}"):
        template(spec)


def test_virtual_tokens_that_do_not_fit_are_refused() -> None:
    assert len(made(max_seq_length=6, add_bos=True, training=False).tokens) == 6
    with pytest.raises(DataError, match="6 virtual and begin tokens do not fit in 5 tokens"):
        template(max_seq_length=5, add_bos=True)
    assert len(made(max_seq_length=5, with_virtual=False, training=False).tokens) == 5


def test_a_marker_the_plan_does_not_count_is_text() -> None:
    text = SPEC.prompt_template.replace("Q:", "<|VIRTUAL_PROMPT_1234567|>")
    assert "<|VIRTUAL_PROMPT_1234567|>" in made(replace(SPEC, prompt_template=text)).prompt
