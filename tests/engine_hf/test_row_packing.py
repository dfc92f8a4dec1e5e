"""Rows put together into samples, and rows prepared once: none is lost, none twice, and old ones are not taken for
new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclm.core.errors import DataError
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.data.ranks.instruction_tokens import TokenRow, _within
from hpclm.data.ranks.prepared_rows import PreparedRows, key_of, prepare
from hpclm.data.ranks.row_packing import first_fit


def naive(lengths: list[int], capacity: int) -> list[list[int]]:
    """First fit as its definition says it."""
    samples: list[list[int]] = []
    for row, length in enumerate(lengths):
        fitting = (one for one in samples if sum(min(lengths[other], capacity) for other in one) + length <= capacity)
        found = next(fitting, None)
        if found is None:
            samples.append(found := [])
        found.append(row)
    return samples


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 40))
def test_first_fit_is_what_its_definition_says(lengths: list[int], capacity: int) -> None:
    lengths = [min(one, capacity) for one in lengths]
    found = first_fit(lengths, capacity)
    assert found == naive(lengths, capacity)
    assert sorted(row for sample in found for row in sample) == list(range(len(lengths)))
    assert all(sample and sum(lengths[row] for row in sample) <= capacity for sample in found)
    assert found == first_fit(lengths, capacity)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 30))
def test_a_row_of_more_than_a_sample_has_one_of_its_own(lengths: list[int], capacity: int) -> None:
    found = first_fit(lengths, capacity)
    assert sorted(row for sample in found for row in sample) == list(range(len(lengths)))
    for sample in found:
        assert len(sample) == 1 or sum(lengths[row] for row in sample) <= capacity


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=8), st.lists(st.integers(1, 5), max_size=40))
def test_a_token_is_learned_if_it_ends_in_a_span(gaps: list[tuple[int, int]], sizes: list[int]) -> None:
    spans, at = [], 0
    for gap, length in gaps:
        spans.append((at + gap, at + gap + length))
        at += gap + length
    offsets, at = [(0, 0)], 0
    for size in sizes:
        offsets.append((at, at + size))
        at += size
    offsets.append((0, 0))
    learned, joined = _within(spans, offsets)
    wanted = [any(begin < end <= last for begin, last in spans) for _, end in offsets]
    assert learned == wanted
    first = [next(((begin, last) for begin, last in spans if begin < end <= last), None) for _, end in offsets]
    assert joined == any(span is not None and start < span[0] for (start, _), span in zip(offsets, first, strict=True))
    assert not learned[0]
    assert not learned[-1]


# ---- rows on disk


def data(**how: Any) -> InstructionData:
    return InstructionData(template="stanford", max_seq_length=how.pop("limit", 8), **how)


def rows(*lengths: tuple[int, int]) -> Iterator[TokenRow]:
    """Rows of so many tokens, of which so many at the end are learned."""
    for number, (length, learned) in enumerate(lengths, start=1):
        yield TokenRow(f"a.jsonl:{number}", list(range(length)), [place >= length - learned for place in range(length)])


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    counts = prepare(tmp_path / "key", partial(rows, (5, 2), (8, 8), (2, 1)), data())
    assert (counts.rows, counts.tokens, counts.learned, counts.longest) == (3, 15, 10, 8)
    found = PreparedRows(tmp_path / "key")
    assert found.lengths.tolist() == [5, 8, 2]
    assert found.labels.tolist() == [2, 7, 1]  # a row's first token is no label
    tokens, learned = found.row(0)
    assert tokens.tolist() == [0, 1, 2, 3, 4]
    assert learned.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("too_long", "kept", "cut", "too_many", "without"),
    [("cut", [8, 4], 2, 0, 1), ("leave-out", [4], 0, 2, 0)],
)
def test_long_rows(tmp_path: Path, too_long: Any, kept: list[int], cut: int, too_many: int, without: int) -> None:
    """The second loses its answer when it is cut: it would be a row with nothing to learn."""
    made = partial(rows, (10, 5), (12, 3), (4, 1))
    counts = prepare(tmp_path / "key", made, data(too_long=too_long))
    assert (counts.cut, counts.too_long, counts.without_label) == (cut, too_many, without)
    assert PreparedRows(tmp_path / "key").lengths.tolist() == kept
    assert counts.examples == (["a.jsonl:2"] if too_long == "cut" else ["a.jsonl:1", "a.jsonl:2"])


def test_long_rows_are_refused_where_the_recipe_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl:2: has 9 tokens, more than max_seq_length 8; raise it, or choose"):
        prepare(tmp_path / "key", partial(rows, (8, 1), (9, 1)), data(too_long="refuse"))
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize(
    ("made", "said"),
    [(((20, 2),), "no token to learn"), (((5, 0), (6, 0)), "no token to learn"), ((), "contain none"),
     (((1, 1),), "no token to learn")],
    ids=["cut away", "no label", "no row", "one token"],
)  # fmt: skip
def test_nothing_to_learn_is_an_error(tmp_path: Path, made: tuple[tuple[int, int], ...], said: str) -> None:
    with pytest.raises(DataError, match=f"no row is left to learn: .*{said}.*; "):
        prepare(tmp_path / "key", partial(rows, *made), data())


HARMS = ("no seal", "torn seal", "text", "no tokens", "short tokens", "long tokens", "no starts", "short starts",
         "no learned", "partial", "file")  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_damaged_or_half_written_is_made_again(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "key"
    made = partial(rows, (5, 2), (8, 8))
    if harm == "file":
        folder.write_text("in the way")
    elif harm == "partial":
        (tmp_path / "key.partial").mkdir()
        (tmp_path / "key.partial" / "tokens").write_bytes(b"half")
    else:
        prepare(folder, made, data())
        name = {"seal": "rows.json", "text": "rows.json"}.get(harm.split()[-1], harm.split()[-1])
        path = folder / name
        whole = path.read_bytes()
        if harm.startswith("no "):
            path.unlink()
        else:
            path.write_bytes({"long": whole + whole, "text": b"[]"}.get(harm.split()[0], whole[: len(whole) // 2]))
    calls = []

    def again() -> Iterator[TokenRow]:
        calls.append(1)
        return made()

    counts = prepare(folder, again, data())
    assert calls
    assert counts.rows == 2
    assert PreparedRows(folder).lengths.tolist() == [5, 8]
    assert not (tmp_path / "key.partial").exists()


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    first = prepare(tmp_path / "key", partial(rows, (5, 2), (9, 5)), data())

    def never() -> Iterator[TokenRow]:
        raise AssertionError

    assert prepare(tmp_path / "key", never, data()) == first


def test_an_error_in_the_middle_leaves_no_rows(tmp_path: Path) -> None:
    def breaks() -> Iterator[TokenRow]:
        yield from rows((5, 2))
        raise DataError("a.jsonl:2: is wrong")

    with pytest.raises(DataError, match="is wrong"):
        prepare(tmp_path / "key", breaks, data())
    assert not (tmp_path / "key").exists()
    assert prepare(tmp_path / "key", partial(rows, (5, 2)), data()).rows == 1


def test_the_key_is_of_what_rows_depend_on_and_of_nothing_else(tmp_path: Path) -> None:
    file, other, template = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "t.jinja"
    file.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    other.write_bytes(file.read_bytes())
    template.write_text("{{ messages }}")
    base = InstructionData(train=[str(file)], max_seq_length=64)
    tokenizer = {"tokenizer.json": "1", "tokenizer_config.json": "2"}
    key = key_of([str(file)], base, tokenizer)
    same = [
        ([str(other)], base, tokenizer),  # the same bytes elsewhere
        ([str(file)], replace(base, packing=True), tokenizer),
        ([str(file)], replace(base, cache="/elsewhere", train=[], validation=["x"], test=["y"]), tokenizer),
        ([str(file)], base, dict(reversed(tokenizer.items()))),
    ]
    assert {key_of(*one) for one in same} == {key}
    differ = [
        ([str(file), str(file)], base, tokenizer),
        ([str(file)], replace(base, template="stanford"), tokenizer),
        ([str(file)], replace(base, max_seq_length=65), tokenizer),
        ([str(file)], replace(base, learn="last-answer"), tokenizer),
        ([str(file)], replace(base, too_long="leave-out"), tokenizer),
        ([str(file)], replace(base, system="Be short."), tokenizer),
        ([str(file)], replace(base, columns={"output": "answer"}), tokenizer),
        ([str(file)], replace(base, roles={"user": "human"}), tokenizer),
        ([str(file)], replace(base, format="messages"), tokenizer),
        ([str(file)], replace(base, chat_template=str(template)), tokenizer),
        ([str(file)], base, {**tokenizer, "tokenizer.json": "3"}),
        ([str(file)], base, {**tokenizer, "chat_template.jinja": "3"}),
        ([str(file)], base, {"tokenizer.json": "1"}),
    ]
    keys = [key_of(*one) for one in differ]
    template.write_text("{{ messages }} ")
    keys.append(key_of([str(file)], replace(base, chat_template=str(template)), tokenizer))
    file.write_text(file.read_text() + "\n")
    keys.append(key_of([str(file)], base, tokenizer))
    assert len({key, *keys}) == len(keys) + 1


def test_a_template_elsewhere_with_the_same_words_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    keys = set()
    for name in ("one.jinja", "two.jinja"):
        (tmp_path / name).write_text("{{ messages }}")
        keys.add(key_of([str(file)], InstructionData(chat_template=str(tmp_path / name)), {}))
    assert len(keys) == 1


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        key_of([str(tmp_path / "gone.jsonl")], data(), {})


def test_large_tokens_are_kept(tmp_path: Path) -> None:
    row = TokenRow("a:1", [2**31 - 1, 0], [False, True])
    prepare(tmp_path / "key", lambda: [row], data())
    assert PreparedRows(tmp_path / "key").row(0)[0].tolist() == [2**31 - 1, 0]
    assert np.array_equal(PreparedRows(tmp_path / "key").row(0)[1], [False, True])
