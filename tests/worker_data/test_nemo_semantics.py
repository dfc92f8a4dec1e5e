"""`data.semantics: nemo`: NeMo r1.22's reading of a row, bug by bug, with GPT-2's vocabulary.

Every expected id is put together by hand from what the reference says NeMo does, not taken from our own output.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hpclm.core.errors import DataError
from hpclm.core.spec import PromptData, TaskTemplate
from hpclm.data.examples import PromptDataset
from hpclm.data.nemo_templates import NemoTemplate
from hpclm.data.ranks.packing import pack
from hpclm.data.template_text import by_place
from hpclm.data.templates import Example, Template
from hpclm.data.tokenizers import Tokenizer

SPEC = TaskTemplate(
    "squad", "<|VIRTUAL_PROMPT_0|> Context: {context} Answer: {answer}", 3, [3], truncate_field="context"
)
ROW = {"taskname": "squad", "context": "the cat sat on the mat", "answer": "the mat"}


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_bpe(shared_data / "gpt2-bpe" / "vocab.json", shared_data / "gpt2-bpe" / "merges.txt")


def read(
    gpt2: Tokenizer,
    row: dict[str, str] = ROW,
    spec: TaskTemplate = SPEC,
    *,
    training: bool = True,
    length: int = 99,
    bos: bool = False,
    strips: bool = False,
) -> Example | None:
    template = NemoTemplate(spec, 0, gpt2, max_seq_length=length, add_bos=bos, add_eos=True, strips=strips)
    return template.example(row, 0, training=training)


def shown(example: Example | None) -> list[int | str]:
    """Ids, "v0", "v1" … at virtual slots, and 0.5 more for a masked-in position."""
    assert example is not None
    places = zip(example.tokens, example.virtual, strict=True)
    return [token if number < 0 else f"v{number}" for token, number in places]


def counted(example: Example | None) -> list[int]:
    assert example is not None
    return [token for token, weight in zip(example.tokens, example.loss_mask, strict=True) if weight]


def test_a_plain_row_is_read_as_in_strict_mode(gpt2: Tokenizer) -> None:
    strict = Template(SPEC, 0, gpt2, max_seq_length=99, add_bos=True, add_eos=True).example(ROW, 0, training=True)
    nemo = read(gpt2, bos=True)
    assert nemo is not None
    assert strict is not None
    assert (nemo.tokens, nemo.virtual, nemo.loss_mask) == (strict.tokens, strict.virtual, strict.loss_mask)


def test_prompt_and_answer_are_one_text_so_tokens_may_join_over_the_seam(gpt2: Tokenizer) -> None:
    """The mask is as long as the answer's own tokens, whatever became of them."""
    spec = replace(SPEC, prompt_template="<|VIRTUAL_PROMPT_0|>{context}{answer}", truncate_field=None)
    row = {"taskname": "squad", "context": "un", "answer": "der"}
    example = read(gpt2, row, spec)
    assert shown(example) == ["v0", "v1", "v2", *gpt2.encode("under"), gpt2.eos_id]
    assert len(gpt2.encode("under")) == len(gpt2.encode("der")) == 1
    joined = {**row, "context": "answ", "answer": "er"}
    assert shown(read(gpt2, joined, spec))[3:] == [*gpt2.encode("answer"), gpt2.eos_id]
    strict = Template(spec, 0, gpt2, max_seq_length=99, add_bos=False, add_eos=True)
    assert shown(strict.example(joined, 0, training=True))[3:] == [
        *gpt2.encode("answ"),
        *gpt2.encode("er"),
        gpt2.eos_id,
    ]


def test_a_value_with_a_field_in_it_takes_the_answer_in(gpt2: Tokenizer) -> None:
    row = {**ROW, "context": "see {answer}"}
    assert shown(read(gpt2, row))[3:] == [*gpt2.encode(" Context: see the mat Answer: the mat"), gpt2.eos_id]


def test_special_tokens_in_a_row_are_special(gpt2: Tokenizer) -> None:
    row = {**ROW, "context": "a<|endoftext|>b"}
    expected = [*gpt2.encode(" Context: a"), gpt2.eos_id, *gpt2.encode("b Answer: the mat"), gpt2.eos_id]
    assert shown(read(gpt2, row))[3:] == expected


def test_a_cut_example_loses_bos_and_eos_and_its_mask_starts_one_token_early(gpt2: Tokenizer) -> None:
    whole = read(gpt2, bos=True)
    assert whole is not None
    example = read(gpt2, length=len(whole.tokens) - 1, bos=True)
    # one too long: two tokens of the context go, BOS and EOS are not put back
    assert shown(example) == ["v0", "v1", "v2", *gpt2.encode(" Context: the cat sat on Answer: the mat")]
    assert counted(example) == gpt2.encode(": the mat")
    assert counted(whole) == [*gpt2.encode(" the mat"), gpt2.eos_id]


def test_a_row_that_does_not_fit_is_dropped_one_to_answer_too(gpt2: Tokenizer) -> None:
    spec = replace(SPEC, truncate_field=None)
    assert read(gpt2, spec=spec, length=8) is None
    assert read(gpt2, spec=spec, length=8, training=False) is None
    strict = Template(spec, 0, gpt2, max_seq_length=8, add_bos=False, add_eos=True)
    assert strict.example(ROW, 0, training=False) is not None


def test_a_row_to_answer_shows_the_answer_it_holds(gpt2: Tokenizer) -> None:
    assert shown(read(gpt2, training=False))[3:] == gpt2.encode(" Context: the cat sat on the mat Answer: the mat")
    without = {key: value for key, value in ROW.items() if key != "answer"}
    # outer spaces are stripped, and no EOS is added
    expected = gpt2.encode(" Context: the cat sat on the mat Answer:")
    assert shown(read(gpt2, without, training=False))[3:] == expected


def test_slots_are_numbered_as_they_stand(gpt2: Tokenizer) -> None:
    text = "<|VIRTUAL_PROMPT_1|> {context}<|VIRTUAL_PROMPT_0|> {answer}"
    spec = replace(SPEC, prompt_template=text, virtual_token_splits=[1, 2])
    assert [one for one in shown(read(gpt2, spec=spec)) if isinstance(one, str)] == ["v0", "v1", "v2"]
    strict = Template(spec, 0, gpt2, max_seq_length=99, add_bos=False, add_eos=True)
    found = shown(strict.example(ROW, 0, training=True))
    assert [one for one in found if isinstance(one, str)] == ["v1", "v2", "v0"]


def test_a_marker_in_a_row_is_refused_where_nemo_would_fail(gpt2: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"task squad, row 1: .*semantics: strict"):
        read(gpt2, {**ROW, "context": "<|VIRTUAL_PROMPT_0|>"})


def test_without_answer_only_loss_all_but_virtual_tokens_count(gpt2: Tokenizer) -> None:
    example = read(gpt2, spec=replace(SPEC, answer_only_loss=False), bos=True)
    assert example is not None
    assert [weight for weight, number in zip(example.loss_mask, example.virtual, strict=True) if number >= 0] == [0] * 3
    assert sum(example.loss_mask) == len(example.tokens) - 3


def test_dropped_rows_keep_the_others_places(gpt2: Tokenizer, tmp_path: Path) -> None:
    rows = [{**ROW, "context": "x " * count} for count in (3, 90, 4)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptData(max_seq_length=30, semantics="nemo")
    templates = [replace(SPEC, truncate_field=None)]
    dataset = PromptDataset([str(file)], templates, gpt2, data, training=False)
    assert [example.index for example in dataset.examples] == [0, 2]
    assert dataset.left_out == [1]


@pytest.mark.parametrize("semantics", ["strict", "nemo"])
def test_rows_under_the_shortest_length_are_left_out_of_training(
    gpt2: Tokenizer, tmp_path: Path, semantics: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**ROW, "context": "x" * count}) + "\n" for count in (1, 200)))
    data = PromptData(max_seq_length=200, min_seq_length=20, semantics=semantics)  # type: ignore[arg-type]
    assert PromptDataset([str(file)], [SPEC], gpt2, data, training=True).left_out == [0]


def test_labels_are_the_next_tokens(gpt2: Tokenizer) -> None:
    example = read(gpt2)
    assert example is not None
    batch = pack([example], gpt2.pad_id)
    assert batch.labels[0].tolist() == example.labels[1:]
    assert batch.tokens[0].tolist() == example.tokens[:-1]
    answered = [label for label, weight in zip(batch.labels[0], batch.loss_mask[0], strict=True) if weight]
    assert answered == [*gpt2.encode(" the mat"), gpt2.eos_id]


def test_up_to_r1_21_white_space_beside_a_virtual_token_is_lost(gpt2: Tokenizer) -> None:
    """As NeMo's own class of r1.16 to r1.22 reads it with transformers 4.33.3; r1.22 asks for later ones."""
    spec = replace(
        SPEC,
        prompt_template="Text: <|VIRTUAL_PROMPT_0|> {context} \n<|VIRTUAL_PROMPT_1|>\n {answer}",
        virtual_token_splits=[1, 2],
    )
    row = {"taskname": "squad", "context": "the cat", "answer": "sat"}
    kept, lost = read(gpt2, row, spec), read(gpt2, row, spec, strips=True)
    text = [gpt2.encode(piece) for piece in ("Text: ", " the cat \n", "\n sat")]
    assert shown(kept) == [*text[0], "v0", *text[1], "v1", "v2", *text[2], gpt2.eos_id]
    text = [gpt2.encode(piece) for piece in ("Text:", "the cat", "sat")]
    assert shown(lost) == [*text[0], "v0", *text[1], "v1", "v2", *text[2], gpt2.eos_id]
    # the mask is as long as the answer's own tokens with the space that the template has in front of it
    assert counted(lost)[-2:] == [*gpt2.encode("sat"), gpt2.eos_id]
    assert lost is not None
    assert sum(weight > 0 for weight in lost.loss_mask) == len(gpt2.encode(" sat")) + 1


def test_a_marker_that_no_split_has_is_text(gpt2: Tokenizer) -> None:
    row = {**ROW, "context": "see <|VIRTUAL_PROMPT_7|> there"}
    text = " Context: see <|VIRTUAL_PROMPT_7|> there Answer: the mat"
    assert shown(read(gpt2, row))[3:] == [*gpt2.encode(text), gpt2.eos_id]


def test_nemo_numbers_virtual_tokens_by_their_place() -> None:
    swapped = replace(
        SPEC,
        prompt_template="<|VIRTUAL_PROMPT_1|> {context} <|VIRTUAL_PROMPT_0|> {answer}",
        virtual_token_splits=[1, 2],
    )
    found = by_place(swapped)
    assert found.prompt_template == "<|VIRTUAL_PROMPT_0|> {context} <|VIRTUAL_PROMPT_1|> {answer}"
    assert found.virtual_token_splits == [2, 1]
    assert by_place(SPEC) == SPEC


def test_a_mask_that_begins_on_a_virtual_token_asks_for_its_id(gpt2: Tokenizer) -> None:
    """As NeMo's own collate_fn of r1.22 on 1,920 rows: the pseudo tokens follow the vocabulary of 50,257 entries."""
    spec = replace(SPEC, prompt_template="Text {context}<|VIRTUAL_PROMPT_0|>{answer}")
    example = read(gpt2, {**ROW, "answer": "yes"}, spec, length=9)
    assert example is not None
    batch = pack([example], gpt2.pad_id)
    asked = [int(label) for label, weight in zip(batch.labels[0], batch.loss_mask[0], strict=True) if weight]
    assert asked == [50257 + 2, *gpt2.encode("yes")]
    assert max(example.tokens) <= 50256
