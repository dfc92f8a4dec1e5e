"""Whatever a file holds: one DataError with file and line, or ids a model can take. Never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from hpclm.core.errors import DataError
from hpclm.core.spec import PromptData, TaskTemplate
from hpclm.data.examples import PromptDataset
from hpclm.data.ranks.packing import collate_prompts, pack
from hpclm.data.sources import assistant
from hpclm.data.templates import Example, Template
from hpclm.data.tokenizers import Tokenizer
from hpclm.metrics import scores

TOKENIZER = Tokenizer.train(["the quick brown fox 日本語 answer: yes no"] * 20, 320)
TEMPLATE = TaskTemplate("t", "<|VIRTUAL_PROMPT_0|> {q} {answer}", 2, [2])
HEADER = "answerid;scenario;intent;answer_annotation;answer_from_anno;answer_from_user\n"


def load(path: Path, content: bytes, *, training: bool = True) -> PromptDataset:
    path.write_bytes(content)
    return PromptDataset([str(path)], [TEMPLATE], TOKENIZER, PromptData(max_seq_length=32), training=training)


def template(text: str, splits: tuple[int, ...] = (), cut: str | None = None, **options: object) -> Template:
    spec = TaskTemplate("t", text, sum(splits), list(splits), cut)
    settings_ = {"max_seq_length": 24, "add_bos": False, "add_eos": True, **options}
    return Template(spec, 0, TOKENIZER, **settings_)  # type: ignore[arg-type]


def example(made: Template, row: dict[str, str], *, training: bool) -> Example:
    found = made.example(row, 0, training=training)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"taskname": "t", "q": "\\ud800", "answer": "x"}', "q has half of a surrogate pair"),
        (b'{"taskname": "t", "q": "\xe9", "answer": "x"}', "not UTF-8 text at byte 24"),
        (b'{"taskname": "t", "q": NaN, "answer": "x"}', "q is a number; write it as text"),
        (b'{"taskname": "t", "q": null, "answer": "x"}', "q is null; write it as text"),
        (b'{"taskname": ["t"], "q": "x"}', "taskname .*'t'.* has no template"),
        (b'{"taskname": "t", "q": "x"}', "no 'answer', the answer to train on"),
        (b'{"taskname": "t", "q": "x", "answer": "y"', "is not valid JSON"),
        (b"9" * 5000, "is a number; a row is an object|is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    good = b'{"taskname": "t", "q": "x", "answer": "y"}\n'
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: .*({words})"):
        load(tmp_path / "rows.jsonl", good + b"\n" + line + b"\n" + good)


def test_a_test_row_needs_no_answer(tmp_path: Path) -> None:
    dataset = load(tmp_path / "rows.jsonl", b'{"taskname": "t", "q": "x"}\r\n', training=False)
    assert dataset.examples[0].answer is None


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_examples_or_one_message(tmp_path: Path, content: bytes) -> None:
    try:
        found = str(len(load(tmp_path / "rows.jsonl", content)))
    except DataError as error:
        found = str(error)
    assert found.isdigit() or "rows.jsonl" in found


@given(
    st.dictionaries(st.sampled_from(["q", "answer"]), st.text(max_size=60)),
    st.sampled_from(["{q} {answer}", "{q}{answer}", "<|VIRTUAL_PROMPT_0|> {q} <|VIRTUAL_PROMPT_1|>: {answer}"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_any_row_gives_ids_within_the_limit(row: dict[str, str], text: str, bos: bool, alone: bool, cut: bool) -> None:
    splits = (2, 1) if "VIRTUAL" in text else ()
    made = template(text, splits, "q" if cut else None, add_bos=bos, with_virtual=not alone)
    prompt = example(made, row, training=False)
    assert 1 <= len(prompt.tokens) <= 24
    assert [number for number in prompt.virtual if number >= 0] == ([] if alone or not splits else [0, 1, 2])
    assert not bos or prompt.tokens[0] == TOKENIZER.bos_id
    whole = made.example(row, 0, training=True)
    if whole is not None:
        assert len(whole.tokens) <= 24
        if not whole.truncated and not prompt.truncated:
            assert whole.tokens[: len(prompt.tokens)] == prompt.tokens
        batch = pack([whole, whole], TOKENIZER.pad_id, multiple_of=4)
        assert batch.tokens.shape[1] % 4 == 0
    assert collate_prompts([prompt], TOKENIZER.pad_id).lengths


def test_an_empty_prompt_begins_with_the_begin_token() -> None:
    assert example(template("{q}{answer}"), {"q": ""}, training=False).tokens == [TOKENIZER.bos_id]


def test_spaces_in_front_go_with_and_without_a_begin_token() -> None:
    plain = example(template(" the {answer}"), {}, training=False).tokens
    assert example(template(" the {answer}", add_bos=True), {}, training=False).tokens == [TOKENIZER.bos_id, *plain]
    assert TOKENIZER.decode(plain) == "the"


@given(st.text(alphabet="日本語é😀 a", min_size=20, max_size=60))
@settings(max_examples=80, deadline=None)
def test_a_cut_never_falls_inside_a_character(text: str) -> None:
    made = example(template("{q} {answer}", cut="q"), {"q": text, "answer": "yes"}, training=True)
    assert "�" not in made.prompt
    assert text.strip(" ").startswith(made.prompt)
    assert TOKENIZER.decode(made.tokens).endswith(" yes")


def test_a_field_behind_the_answer_can_be_cut() -> None:
    spec = TaskTemplate("t", "{q} {answer} {notes}", 0, [], "notes", answer_only_loss=False)
    made = Template(spec, 0, TOKENIZER, max_seq_length=12, add_bos=False, add_eos=True)
    whole = example(made, {"q": "the", "answer": "yes", "notes": "fox " * 40}, training=True)
    assert len(whole.tokens) <= 12
    assert whole.truncated > 0


def test_what_is_cut_from_a_prompt_is_text_and_not_the_begin_token() -> None:
    made = template("{q} <|VIRTUAL_PROMPT_0|>: {answer}", (3,), add_bos=True, max_seq_length=8)
    prompt = example(made, {"q": "fox " * 30}, training=False)
    assert prompt.tokens[0] == TOKENIZER.bos_id
    assert [number for number in prompt.virtual if number >= 0] == [0, 1, 2]
    assert len(prompt.tokens) == 8


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("<|VIRTUAL_PROMPT_0|> a <|VIRTUAL_PROMPT_1|> b: {answer}", "a b:"),
        ("a <|VIRTUAL_PROMPT_0|><|VIRTUAL_PROMPT_1|> {answer}", "a"),
        ("a<|VIRTUAL_PROMPT_0|> b <|VIRTUAL_PROMPT_1|>{answer}", "a b"),
    ],
)
def test_the_model_alone_reads_the_text_without_the_markers(text: str, alone: str) -> None:
    made = example(template(text, (1, 1), with_virtual=False), {}, training=False)
    assert TOKENIZER.decode(made.tokens) == alone


def test_a_tokenizer_made_to_pad_and_cut_does_neither(tmp_path: Path) -> None:
    backend = Backend.from_str(TOKENIZER.backend.to_str())
    backend.enable_padding(length=20)
    backend.enable_truncation(8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("fox " * 12) == TOKENIZER.encode("fox " * 12)


def test_ids_with_holes_count_up_to_the_largest(tmp_path: Path) -> None:
    model = json.loads(TOKENIZER.backend.to_str())
    model["model"]["vocab"]["hole"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    assert Tokenizer.load(tmp_path).vocab_size == 5001


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (b'1;a;b;"x"\n', r"call\.csv:2: a row without answer_annotation or answer_from_anno"),
        (b'1;a;b;"x";"x";"y"\n2;a;b;"open;"x";"y"\n', r"call\.csv:3: not a CSV row"),
        (b'1;a;b;"\xe9";"x";"y"\n', r"call\.csv: not UTF-8"),
    ],
)
def test_a_bad_row_of_the_assistant_set_is_named(tmp_path: Path, rows: bytes, words: str) -> None:
    for folder in ("trainset", "testset/csv"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "call.csv").write_bytes(HEADER.encode() + rows)
    with pytest.raises(DataError, match=words):
        assistant(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_say_how_many_rows_had_answers_and_count_repeated_slots() -> None:
    answer = "\nIntent: a\nSlots: who(jim), who(jim)"
    rows = [("\nIntent: a\nSlots: who(jim)\nIntent: b", answer), ("\nIntent: a", answer), ("x", None)]
    found = scores({"taskname": "t", "prediction": made, "answer": truth} for made, truth in rows)["t"]
    assert found["examples"] == 3
    assert found["examples_with_answer"] == 2
    assert found["intent_accuracy"] == 1.0
    # one slot right of one predicted and four expected
    assert found["slot_f1"] == pytest.approx(2 * 1 / (1 + 4))
