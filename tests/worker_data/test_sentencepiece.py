"""SentencePiece models, as archives of NeMo have them: ids are the package's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from hpclm.core.errors import DataError
from hpclm.core.spec import TokenizerSpec
from hpclm.data.tokenizers import SentencePieceTokenizer, Tokenizer, load_tokenizer
from hpclm.formats.sentencepiece_model import count_entries
from tests.support.nemo_files import write_members

TEXT = ["the cat sat on the mat", "a dog is not a cat", "how many cats are there?", "naïve Über 日本"] * 20


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def model(request: pytest.FixtureRequest) -> bytes:
    stream = io.BytesIO()
    settings: dict[str, Any] = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=stream, model_type=request.param, **settings
    )
    return stream.getvalue()


@pytest.mark.parametrize("text", ["the cat", " the cat", "", "the </s> cat", "dogs  and\nmats", "unseen ☃"])
def test_ids_are_the_packages(model: bytes, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = SentencePieceTokenizer(model, "x.model")
    assert tokenizer.encode(text) == processor.encode_as_ids(text)
    assert tokenizer.encode_batch([text, "cat"]) == [tokenizer.encode(text), tokenizer.encode("cat")]
    assert not set(tokenizer.encode(text)) & set(tokenizer.special_ids.values())
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("the cat"), tokenizer.eos_id]) == "the cat"
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (processor.get_piece_size(), processor.eos_id())
    assert "the cat</s>" in tokenizer.shown([*tokenizer.encode("the cat"), tokenizer.eos_id])


def test_the_beginning_has_no_more_tokens_than_asked_for(model: bytes) -> None:
    tokenizer = SentencePieceTokenizer(model, "x.model")
    for count in range(8):
        begun = tokenizer.beginning(TEXT[0], count)
        assert TEXT[0].startswith(begun)
        assert len(tokenizer.encode(begun)) <= count
    assert tokenizer.beginning(TEXT[0], 99) == TEXT[0]


def test_the_login_node_counts_its_entries_without_the_package(model: bytes) -> None:
    assert count_entries(model) == sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    for broken in (b"", b"{}", model[:-3], b"\xff" * 40, model + b"\x0b"):
        with pytest.raises(ValueError, match="not a SentencePiece model"):
            count_entries(broken)


def test_it_is_found_in_folders_files_and_archives(tmp_path: Path, model: bytes) -> None:
    tokenizer = SentencePieceTokenizer(model, "x.model")
    tokenizer.save(tmp_path / "checkpoint")
    expected = tokenizer.encode(TEXT[0])
    assert Tokenizer.load(tmp_path / "checkpoint").encode(TEXT[0]) == expected
    file = tmp_path / "checkpoint" / "tokenizer.model"
    assert load_tokenizer(TokenizerSpec("json", tokenizer_file=str(file)), None).encode(TEXT[0]) == expected
    archive = write_members(tmp_path / "gpt.nemo", {"model_config.yaml": b"a: 1", "0a1b_spm.model": model})
    assert load_tokenizer(TokenizerSpec("base"), archive).encode(TEXT[0]) == expected


def test_another_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(b"not one")
    with pytest.raises(DataError, match=r"x\.model: not a SentencePiece model"):
        Tokenizer.from_json(tmp_path / "x.model")
