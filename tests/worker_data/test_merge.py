"""`hpclm data merge` gives the files of megatron-core's IndexedDatasetBuilder.add_index, as tools/merge_datasets.py."""

from __future__ import annotations

import filecmp
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from hpclm import cli
from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.errors import DataError
from hpclm.core.records import to_dict
from hpclm.core.sealed import write_sealed
from hpclm.core.spec import TokenizerSpec
from hpclm.data.corpus import parts
from hpclm.data.corpus.merging import merge_pairs
from hpclm.data.corpus.tokenized_record import Counts, Tokenized, record_of


def made(prefix: Path, seed: int, documents: int, dtype: type = np.uint16, *, multimodal: bool = False) -> str:
    """Documents of no, one or several sequences."""
    draw = random.Random(seed)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype, multimodal=multimodal)
    for _ in range(documents):
        lengths = [draw.randrange(1, 40) for _ in range(draw.choice([0, 1, 1, 1, 3]))]
        tokens: np.ndarray = np.array([draw.randrange(500) for _ in range(sum(lengths))], dtype=dtype)
        builder.add_document(tokens, lengths, [1] * len(lengths) if multimodal else None)
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def recorded(prefix: str, tokenizer: str) -> None:
    spec = CorpusSpec(["a.jsonl"], TokenizerSpec("json", tokenizer_file=tokenizer), prefix)
    record = Tokenized("m", spec, "tokenizers", [prefix], Counts(3, 10), 1.0)
    write_sealed(Path(f"{prefix}.tokenized.json"), to_dict(record))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("counts", [(5,), (30, 1, 12), (0, 7), (40, 0, 0, 3)])
def test_files_are_megatrons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], dtype: type
) -> None:
    monkeypatch.setattr(parts, "_ITEMS", 4)
    pairs = [made(tmp_path / f"p{number}", number, count, dtype) for number, count in enumerate(counts)]
    theirs = IndexedDatasetBuilder(f"{tmp_path / 'theirs'}.bin", dtype=dtype)
    for prefix in pairs:
        theirs.add_index(prefix)
    theirs.finalize(f"{tmp_path / 'theirs'}.idx")
    found = merge_pairs(pairs, str(tmp_path / "ours"))
    assert found.documents == sum(counts)
    for end in (".bin", ".idx"):
        assert filecmp.cmp(f"{tmp_path / 'ours'}{end}", f"{tmp_path / 'theirs'}{end}", shallow=False), end
    assert not list(tmp_path.glob("*.partial"))


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one", 1, 5), made(tmp_path / "other", 2, 5, np.int32)
    third = made(tmp_path / "third", 3, 5)
    with pytest.raises(DataError, match=r"other: contains int32, and .*one uint16"):
        merge_pairs([one, other], str(tmp_path / "out"))
    recorded(one, "/t/a.json")
    recorded(third, "/t/b.json")
    with pytest.raises(DataError, match=r"third: was made with the tokenizer /t/b.json, and .*one with /t/a.json"):
        merge_pairs([one, third], str(tmp_path / "out"))
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(name)
    recorded(one, str(tmp_path / "a.json"))
    recorded(third, str(tmp_path / "b.json"))
    with pytest.raises(DataError, match=r"third: was made with the tokenizer .*/b.json, and .*one with .*/a.json"):
        merge_pairs([one, third], str(tmp_path / "out"))
    images = made(tmp_path / "images", 4, 5, multimodal=True)
    with pytest.raises(DataError, match=r"images: is multimodal"):
        merge_pairs([one, images], str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"one.bin: already exists; give another --out"):
        merge_pairs([one], one)
    with pytest.raises(DataError, match=r"gone.idx: does not exist"):
        merge_pairs([one, str(tmp_path / "gone")], str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_one_tokenizer_in_two_folders_is_the_same(tmp_path: Path) -> None:
    pairs = [made(tmp_path / name, 1, 5) for name in ("one", "two")]
    for prefix in pairs:
        tokenizer = Path(f"{prefix}.json")
        tokenizer.write_text("{}")
        recorded(prefix, str(tokenizer))
    assert merge_pairs(pairs, str(tmp_path / "out")).documents == 10


def test_the_whole_knows_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = made(tmp_path / "one", 1, 5), made(tmp_path / "two", 2, 6)
    recorded(one, "/t/a.json")
    recorded(two, "/t/a.json")
    assert cli.run(["data", "merge", f"{one}.bin", f"{two}.idx", "--out", str(tmp_path / "whole")]) == 0
    assert "11 documents" in capsys.readouterr().out
    record = record_of(str(tmp_path / "whole"))
    assert record is not None
    assert record.spec.tokenizer.tokenizer_file == "/t/a.json"
    assert record.counts == replace(Counts(), documents=6, tokens=20)
