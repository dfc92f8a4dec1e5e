"""Tokenizers, and text as Megatron's indexed tokens."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm.core import spec as plan
from hpclm.core.errors import DataError
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.data.ranks.text_corpus import Windows, prepare_text
from hpclm.data.tokenizers import Tokenizer, load_tokenizer

TOKENIZER = Tokenizer.train(["hello world, this is a text"] * 10, 300)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens_in_a_text_are_text() -> None:
    ids = TOKENIZER.encode("a<|endoftext|>b")
    assert TOKENIZER.eos_id not in ids
    assert TOKENIZER.decode(ids) == "a<|endoftext|>b"


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode("hello there") == TOKENIZER.encode("hello there")
    assert (again.vocab_size, again.eos_id, again.pad_id) == (TOKENIZER.vocab_size, *[TOKENIZER.eos_id] * 2)


def test_gpt2_files_give_gpt2_ids(shared_data: Path) -> None:
    folder = shared_data / "gpt2-bpe"
    tokenizer = load_tokenizer(
        plan.TokenizerSpec("bpe", vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt")), None
    )
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"model": 3}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=str(path)):
        Tokenizer.from_json(path)


def test_a_tokenizer_larger_than_the_models_table_is_refused() -> None:
    TOKENIZER.check_fits(TOKENIZER.vocab_size)
    with pytest.raises(DataError, match=r"entries, the model's embedding table only 128"):
        TOKENIZER.check_fits(128)


def spec_of(folder: Path, document: str, **changes: object) -> plan.StageSpec:
    text = plan.TextData([str(folder)], "*.txt", document=document, seq_length=8, validation_fraction=0.25)  # type: ignore[arg-type]
    return plan.StageSpec(
        run="r",
        stage="s",
        stage_dir=str(folder),
        task="pretrain",
        device="cpu",
        model=plan.ModelSpec(1, 8, 8, 1, 1, 8, 8, 384, 384),
        tokenizer=plan.TokenizerSpec("train", 300),
        parallel=ParallelSpec(1, 1, 1, 1, 1, 1),
        batch=plan.BatchSpec(1, 1, 1),
        trainer=plan.TrainerSpec("fp32", max_steps=1),
        optim=plan.OptimSpec(1e-3),
        checkpoint=plan.CheckpointSpec(),
        text=replace(text, **changes),  # type: ignore[arg-type]
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} line {n}\nand its second" for n in range(12)))
    return folder


@pytest.mark.parametrize("document", ["file", "line", "paragraph"])
def test_windows_cover_the_text_and_overlap_by_one(corpus: Path, tmp_path: Path, document: str) -> None:
    spec, folder = spec_of(corpus, document), tmp_path / "data"
    prepare_text(spec, folder)
    tokenizer = Tokenizer.load(folder)
    for name in ("train", "validation"):
        windows = Windows(folder, name, 8)
        samples = [windows[number] for number in range(len(windows))]
        assert all(len(one["tokens"]) == len(one["labels"]) == 8 for one in samples)
        assert all(one["tokens"].tolist()[1:] == one["labels"].tolist()[:-1] for one in samples)
        assert all(left["labels"][-1] == right["tokens"][0] for left, right in itertools.pairwise(samples))
    # of `validation`, the last: a quarter of the documents, each with its end
    ends = windows.tokens.tolist().count(tokenizer.eos_id)
    assert ends == {"file": 1, "line": 24, "paragraph": 12}[document]


def test_tokens_are_made_once(corpus: Path, tmp_path: Path) -> None:
    spec, folder = spec_of(corpus, "file"), tmp_path / "data"
    prepare_text(spec, folder)
    made = (folder / "train.bin").stat().st_ino
    prepare_text(spec, folder)
    assert (folder / "train.bin").stat().st_ino == made
    (corpus / "a.txt").write_text("another text " * 30)
    prepare_text(spec, folder)
    assert (folder / "train.bin").stat().st_ino != made


@pytest.mark.parametrize("damage", ["half", "zeros", "gone", "flip", "empty mark"])
def test_damaged_data_is_prepared_again(corpus: Path, tmp_path: Path, damage: str) -> None:
    spec, folder = spec_of(corpus, "file"), tmp_path / "data"
    prepare_text(spec, folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    data = bytearray(whole["train.bin"])
    data[len(data) // 2] ^= 1
    damaged = {
        "half": {"train.bin": whole["train.bin"][: len(data) // 2]},
        "zeros": {"train.bin": bytes(len(data)), "tokenizer.json": b""},
        "flip": {"train.bin": bytes(data)},
        "gone": {},
        "empty mark": {"prepared.json": b""},
    }[damage]
    for name, content in damaged.items():
        (folder / name).write_bytes(content)
    if damage == "gone":
        (folder / "train.idx").unlink()
    prepare_text(spec, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_too_little_text_is_said_with_numbers(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the train text has \d+ tokens, less than one sample of text.seq_length 5000"):
        prepare_text(spec_of(corpus, "file", seq_length=5000), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_text_that_is_not_utf8_is_named(corpus: Path, tmp_path: Path) -> None:
    (corpus / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"bad\.txt:\d+: not UTF-8 at byte 3 of the file"):
        prepare_text(spec_of(corpus, "file"), tmp_path / "data")


def test_the_indexed_format_is_megatrons(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "x.bin"), dtype=DType.optimal_dtype(50257))
    for length in (5, 3, 7, 2):
        builder.add_document(np.arange(length), [length])
    builder.finalize(str(tmp_path / "x.idx"))
    tokens = [token for length in (5, 3, 7, 2) for token in range(length)]
    assert (tmp_path / "x.bin").read_bytes() == struct.pack("<17H", *tokens)
    # magic, version 1, uint16 (code 8), 4 sequences, 4 documents and one; lengths, byte offsets, document bounds
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, 4, 5)
    index = header + struct.pack("<4i4q5q", 5, 3, 7, 2, 0, 10, 16, 30, 0, 1, 2, 3, 4)
    assert (tmp_path / "x.idx").read_bytes() == index
    assert len(index) == 122
