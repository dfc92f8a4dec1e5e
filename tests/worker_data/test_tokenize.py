"""`hpclm data tokenize`: its files are those of megatron-core's own builder, byte by byte."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiktoken
import zstandard
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.errors import DataError
from hpclm.core.spec import TokenizerSpec
from hpclm.data.corpus import encoding, inputs, tokenizing
from hpclm.data.corpus.inspecting import contents
from hpclm.data.corpus.job import Worker, make_job
from hpclm.data.corpus.parts import PartFiles, PartWriter, merge
from hpclm.data.corpus.tokenized_record import Counts, Tokenized
from hpclm.data.corpus.tokenizing import tokenize
from hpclm.data.tokenizers import Tokenizer
from tests.support.waiting import wait_until

FOLDER = Path(tempfile.mkdtemp(prefix="hpclm-bpe-"))
VOCAB, MERGES = FOLDER / "vocab.json", FOLDER / "merges.txt"
SPEC = TokenizerSpec("bpe", vocab_file=str(VOCAB), merges_file=str(MERGES))


@pytest.fixture(scope="module", autouse=True)
def trained() -> Iterator[None]:
    """A byte-level BPE of Python's own sources, in GPT-2's two files."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("[a-d]*.py"))]
    Tokenizer.train(texts, 2000).backend.model.save(str(FOLDER))
    yield
    shutil.rmtree(FOLDER)


def documents(count: int, seed: int = 7) -> list[dict[str, object]]:
    """Documents of all kinds: empty, a list of sentences, other alphabets, names of special tokens."""
    draw = random.Random(seed)
    words = [
        "def",
        "return x",
        "naïve",
        "日本語",
        "👩‍👩‍👧",
        "\n\n    ",
        "<|endoftext|>",
        "don't",
        "\u2028",
        "0x1F",
        "\x00",
    ]
    found: list[dict[str, object]] = []
    for _ in range(count):
        texts = [" ".join(draw.choices(words, k=draw.randrange(60))) for _ in range(draw.choice([1, 1, 1, 0, 3]))]
        body: object = texts if len(texts) != 1 else texts[0]
        found.append({"id": len(found), "content": body, "other": draw.choice(words)})
    return found


def written(path: Path, rows: list[dict[str, object]], *, ascii_only: bool = False) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows), encoding="utf-8")
    return path


def by_megatron(rows: list[dict[str, object]], key: str, prefix: Path, *, eod: bool) -> None:
    """What tools/preprocess_data.py of core_r0.14 does with each line, on the library's builder and GPT-2's tokens."""
    reference = Tokenizer.from_bpe(VOCAB, MERGES)
    dtype = DType.optimal_dtype(reference.vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for row in rows:
        body: Any = row[key]
        texts = body if isinstance(body, list) else [body]
        ids: list[int] = []
        lengths: list[int] = []
        for text in texts:
            found = reference.encode(text)
            if found:
                ids.extend(found)
                lengths.append(len(found))
        if ids and eod:
            ids.append(reference.eos_id)
            lengths[-1] += 1
        builder.add_document(np.array(ids, dtype=dtype), lengths)
    builder.finalize(f"{prefix}.idx")


def same(ours: str, theirs: Path) -> bool:
    return all(Path(f"{ours}{end}").read_bytes() == Path(f"{theirs}{end}").read_bytes() for end in (".bin", ".idx"))


def run(spec: CorpusSpec, workers: int = 1) -> Tokenized:
    return tokenize(spec, workers, lambda progress: None)[0]


@pytest.mark.parametrize("encoder", encoding.ENCODERS)
def test_files_are_those_of_megatrons_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str) -> None:
    rows = documents(400)
    monkeypatch.setattr(inputs, "PIECE_BYTES", 9_000)  # many pieces, cut within lines
    source = written(tmp_path / "a.jsonl", rows)
    for eod in (True, False):
        spec = CorpusSpec(
            [str(source)], SPEC, str(tmp_path / f"o{eod}"), keys=["content", "other"], append_eod=eod, encoder=encoder
        )
        made = run(spec, workers=2)
        assert made.encoder == encoder
        assert len(make_job(spec).pieces) > 5
        for key in spec.keys:
            by_megatron(rows, key, tmp_path / f"theirs-{key}", eod=eod)
            assert same(spec.output(key), tmp_path / f"theirs-{key}")
        assert made.counts.documents == len(rows)
    assert len(IndexedDataset(spec.output("content")).document_indices) == len(rows) + 1


@pytest.mark.parametrize("packed", ["gz", "zst", "parquet", "two files", "escaped"])
def test_packed_files_give_the_same(tmp_path: Path, packed: str) -> None:
    rows = [row for row in documents(300) if isinstance(row["content"], str)]
    folder = tmp_path / "corpus"
    folder.mkdir()
    if packed == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet", row_group_size=40)
    elif packed == "two files":
        written(folder / "a.jsonl", rows[:100])
        written(folder / "b.json", rows[100:])
    elif packed == "escaped":
        written(folder / "a.ndjson", rows, ascii_only=True)
    else:
        plain = written(tmp_path / "a.jsonl", rows).read_bytes()
        data = gzip.compress(plain) if packed == "gz" else zstandard.compress(plain)
        (folder / f"a.jsonl.{packed}").write_bytes(data)
    spec = CorpusSpec([str(folder)], SPEC, str(tmp_path / "out"), keys=["content"], append_eod=True)
    run(spec)
    by_megatron(rows, "content", tmp_path / "theirs", eod=True)
    assert same(spec.output("content"), tmp_path / "theirs")


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line\n\nanother\nof two\n")
    (tmp_path / "b.txt").write_text("last")
    rows = {
        "file": ["one line\n\nanother\nof two\n", "last"],
        "line": ["one line", "another", "of two", "last"],
        "paragraph": ["one line", "another\nof two\n", "last"],
    }
    for document, texts in rows.items():
        spec = CorpusSpec(
            [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")],
            SPEC,
            str(tmp_path / f"o-{document}"),
            document=document,  # type: ignore[arg-type] # its keys are the words
        )
        run(spec)
        by_megatron([{"text": text} for text in texts], "text", tmp_path / "theirs", eod=False)
        assert same(spec.output("text"), tmp_path / "theirs"), document


def test_begin_tokens_stand_before_documents(tmp_path: Path) -> None:
    rows = [{"text": ["a b", "", "c"]}, {"text": ""}, {"text": ["", "d"]}]
    source = written(tmp_path / "a.jsonl", rows)  # type: ignore[arg-type] # of the same kind
    spec = CorpusSpec([str(source)], SPEC, str(tmp_path / "o"), append_eod=True, prepend_bos=True)
    run(spec)
    own = Tokenizer.from_bpe(VOCAB, MERGES)
    begin, end = [own.bos_id], [own.eos_id]
    data = IndexedDataset(spec.output("text"))
    assert [data[number].tolist() for number in range(3)] == [
        begin + own.encode("a b"),
        own.encode("c") + end,
        begin + own.encode("d") + end,
    ]


def test_names_of_special_tokens_are_text_unless_wanted(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [{"text": "a<|endoftext|>b"}])
    own = Tokenizer.from_bpe(VOCAB, MERGES)
    for wanted in (False, True):
        for encoder in ("gigatoken", "tokenizers"):
            prefix = str(tmp_path / f"{wanted}-{encoder}")
            run(CorpusSpec([str(source)], SPEC, prefix, special_tokens=wanted, encoder=encoder))
            data = IndexedDataset(f"{prefix}_text_document")  # its arrays end with it
            found = data[0].tolist()
            assert (own.eos_id in found) is wanted


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = documents(300)
    monkeypatch.setattr(inputs, "PIECE_BYTES", 9_000)
    source = written(tmp_path / "a.jsonl", rows)
    spec = CorpusSpec([str(source)], SPEC, str(tmp_path / "o"), keys=["content"], append_eod=True)
    begun = make_job(spec)
    some = range(0, len(begun.pieces), 2)
    worker = Worker(begun, lambda *counts: None)
    for number in some:
        worker.run(number)
    times = {number: begun.part(number).data(0).stat().st_mtime_ns for number in some}
    begun.part(1).data(0).write_bytes(b"half of a part")  # where a worker was killed
    seen: list[tokenizing.Progress] = []
    kept: dict[int, int] = {}

    def watch(progress: tokenizing.Progress) -> None:
        seen.append(progress)
        kept.update({number: begun.part(number).data(0).stat().st_mtime_ns for number in some})

    made, _ = tokenize(spec, 2, watch)
    assert kept == times
    assert seen[-1].documents == len(rows) == made.counts.documents
    assert 0 < seen[-1].reused < seen[-1].bytes == seen[-1].size
    # the rate is that of this call
    assert 0 < made.earlier_bytes < made.counts.text_bytes
    assert made.rate * made.seconds == pytest.approx(made.counts.text_bytes - made.earlier_bytes)
    by_megatron(rows, "content", tmp_path / "theirs", eod=True)
    assert same(spec.output("content"), tmp_path / "theirs")
    assert not spec.parts_folder.exists()
    again, notes = tokenize(spec, 1, watch)
    assert again == made
    assert "nothing has changed" in notes[0]


def test_other_input_does_not_use_the_parts_or_overwrite(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", documents(50))
    spec = CorpusSpec([str(source)], SPEC, str(tmp_path / "o"), keys=["content"])
    first = make_job(spec)
    Worker(first, lambda *counts: None).run(0)
    rows = documents(40, seed=8)
    written(source, rows)
    run(spec)
    by_megatron(rows, "content", tmp_path / "theirs", eod=False)
    assert same(spec.output("content"), tmp_path / "theirs")
    written(source, documents(30, seed=9))
    with pytest.raises(DataError, match="already exists, made from something else"):
        run(spec)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "hpclm.cli", "data", *words]


def test_keys_behind_one_option_are_not_taken_for_files(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", documents(3))
    words = command("tokenize", str(source), "--json-keys", "content", "title", "--out", str(tmp_path / "o"))
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    said = " ".join(ended.stderr.replace("│", " ").split())
    assert ended.returncode != 0
    assert "give --json-keys content --json-keys title" in said


def test_a_killed_command_loses_nothing(tmp_path: Path) -> None:
    rows = documents(8000)
    source = written(tmp_path / "a.jsonl", rows)
    words = command(
        *("tokenize", str(source), "--out", str(tmp_path / "o"), "--json-keys", "content", "--append-eod"),
        *("--vocab-file", str(VOCAB), "--merge-file", str(MERGES), "--encoder", "tokenizers", "--workers", "2"),
    )
    child = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("o.parts/*/part-*.bin")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "8,000 documents" in ended.stdout
    by_megatron(rows, "content", tmp_path / "theirs", eod=True)
    assert same(f"{tmp_path / 'o'}_content_document", tmp_path / "theirs")


@pytest.mark.parametrize("when", ["workers begin", "a part is written"])
def test_workers_end_with_a_command_that_is_killed(tmp_path: Path, when: str) -> None:
    source = written(tmp_path / "a.jsonl", documents(8000))
    code = "from hpclm.cli.app import main; from hpclm.data.corpus import inputs; inputs.PIECE_BYTES = 100_000; main()"
    words = command(
        *("tokenize", str(source), "--out", str(tmp_path / "o"), "--json-keys", "content", "--append-eod"),
        *("--vocab-file", str(VOCAB), "--merge-file", str(MERGES), "--encoder", "tokenizers", "--workers", "2"),
    )
    words = [sys.executable, "-c", code, *words[words.index("data") :]]
    child = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until("the workers", lambda: len(_of_session(child.pid)) >= 3, pause_s=0.005)
        if when == "a part is written":
            wait_until("the first part", lambda: any(tmp_path.glob("o.parts/*/part-*.bin")), pause_s=0.02)
        child.kill()
        child.wait()
        wait_until("no process of the command is left", lambda: not _of_session(child.pid))
    finally:
        for pid in _of_session(child.pid):
            os.kill(pid, signal.SIGKILL)


def _of_session(leader: int) -> list[int]:
    """Its processes but for those that have ended and that nobody has waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(("document", "left"), [("file", 1), ("line", 3), ("paragraph", 2)])
def test_a_plain_text_that_is_not_utf8_is_named_or_left_out(
    tmp_path: Path, document: Literal["file", "line", "paragraph"], left: int
) -> None:
    (tmp_path / "a.txt").write_bytes(b"first\nof two\n\nb\xe9d line\n")
    (tmp_path / "b.txt").write_text("caf\u00e9\n")
    spec = CorpusSpec([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], SPEC, str(tmp_path / "o"), document=document)
    with pytest.raises(DataError, match=r"a\.txt:4: not UTF-8 at byte 15 of the file"):
        run(spec)
    made = run(replace(spec, skip_bad=True))
    assert (made.counts.documents, made.counts.bad) == (left, 1)
    assert "a.txt" in made.counts.examples[0]


def test_a_long_text_with_a_special_tokens_name_is_the_fast_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference takes 150 bytes of memory for each of a text."""
    tokenizer = Tokenizer.from_bpe(VOCAB, MERGES)
    encoder = encoding.make_encoder(tokenizer, "gigatoken")
    text = "def f(x):\n    return x<|endoftext|> + 1 <|endoftext|>"
    expected = encoding.Reference(tokenizer).encode([text])[0].tolist()
    monkeypatch.setattr(encoding.Reference, "encode", lambda *ignored: pytest.fail("the reference was asked"))
    assert encoder.encode([text])[0].tolist() == expected


BAD = {
    "not JSON": (b'{"text": "a\n', "not JSON"),
    "a list": (b"[1]\n", "not a JSON object, but [1]"),
    "no key": (b'{"txt": "a"}\n', "has no key text; did you mean txt?"),
    "a number": (b'{"text": 5}\n', "text is not text, but 5"),
    "not UTF-8": (b'{"text": "\xff"}\n', "not UTF-8 at byte 10 of the line"),
    "surrogate": (b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
    "deep": (b"[" * 100_000 + b"\n", "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_line_is_named_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    line, message = BAD[name]
    good = [b'{"text": "good line %d"}\n' % number for number in range(50)]
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"".join([*good[:37], line, *good[37:]]))
    monkeypatch.setattr(inputs, "PIECE_BYTES", 300)
    spec = CorpusSpec([str(source)], SPEC, str(tmp_path / "o"))
    with pytest.raises(DataError) as caught:
        run(spec)
    assert str(caught.value).startswith(f"{source}:38: ")
    assert message in str(caught.value)
    assert not list(tmp_path.glob("o_*"))
    made = run(CorpusSpec([str(source)], SPEC, str(tmp_path / "o"), skip_bad=True))
    assert (made.counts.documents, made.counts.bad) == (50, 1)
    assert made.counts.examples[0].startswith(f"{source}:38: ")


def test_mistakes_are_said(tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [{"text": ""}])

    def error(**changes: object) -> str:
        wanted = {"inputs": [str(source)], "tokenizer": SPEC, "prefix": str(tmp_path / "o"), **changes}
        with pytest.raises(DataError) as caught:
            run(CorpusSpec(**wanted))  # type: ignore[arg-type] # what a user gives
        return str(caught.value)

    assert "and no token" in error()
    assert "does not exist" in error(inputs=[str(tmp_path / "none")])
    (tmp_path / "a.csv").write_text("a,b\n")
    assert "its name does not say" in error(inputs=[str(tmp_path / "a.csv")])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 999)[:-20])
    assert "cannot be read" in error(inputs=[str(tmp_path / "a.jsonl.gz")])
    (tmp_path / "a.jsonl.zst").write_bytes(b"not zstandard")
    assert "cannot be read" in error(inputs=[str(tmp_path / "a.jsonl.zst")])
    lines = b"".join(b'{"text": "line %d"}\n' % number for number in range(9999))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines) + zstandard.compress(lines)[:-9])
    for skip_bad in (False, True):
        assert "ends within a frame; it is not whole" in error(
            inputs=[str(tmp_path / "a.jsonl.zst")], skip_bad=skip_bad
        )
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "not a parquet file" in error(inputs=[str(tmp_path / "a.parquet")])
    assert "part of the output's name" in error(keys=["../x"])
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a pipe" in error(inputs=[str(tmp_path / "pipe.jsonl")])


def test_a_faster_encoder_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "a.jsonl", [{"text": "zebra crossing"}])
    real = encoding.Gigatoken.encode

    def wrong(self: encoding.Gigatoken, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens, counts = real(self, texts)
        return (tokens + ("zebra" in texts[0]), counts)

    monkeypatch.setattr(encoding.Gigatoken, "encode", wrong)
    spec = CorpusSpec([str(source)], SPEC, str(tmp_path / "o"))
    found = make_job(spec)
    assert found.encoder == "tiktoken"
    assert "gigatoken gives other tokens than tokenizers for 'zebra crossing'" in found.notes[0]
    with pytest.raises(DataError, match="use auto"):
        make_job(CorpusSpec([str(source)], SPEC, str(tmp_path / "o"), encoder="gigatoken"))
    monkeypatch.setattr(encoding, "choose", lambda *a, **k: ("gigatoken", []))
    with pytest.raises(DataError, match="tokenize again with --encoder tokenizers"):
        Worker(make_job(spec), lambda *counts: None).run(0)


def test_a_tiktoken_file_has_the_tokens_of_its_package(tmp_path: Path) -> None:
    own = Tokenizer.from_bpe(VOCAB, MERGES)
    from hpclm.data.tiktoken_files import PATTERNS, ranks_of
    from hpclm.formats.tiktoken_encodings import SPECIAL_TOKENS

    pattern, ranks = ranks_of(own)
    for name in ("r50k_base", "cl100k_base"):
        path = tmp_path / f"{name}.tiktoken"
        lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
        path.write_bytes(b"".join(lines))
        ours = Tokenizer.from_json(path)
        special = SPECIAL_TOKENS[name]
        theirs = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special)
        texts = [*encoding.HARD_TEXTS, *(Path(os.__file__).read_text()[i : i + 997] for i in range(0, 30_000, 997))]
        for text in texts:
            assert ours.encode(text) == theirs.encode_ordinary(text), repr(text)
        assert ours.eos_id == special["<|endoftext|>"]
        assert ours.special_ids == special
    assert pattern == PATTERNS["r50k_base"]
    path = tmp_path / "unknown.tiktoken"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="does not say how words are cut"):
        Tokenizer.from_json(path)


def test_inspect_counts_and_decodes(tmp_path: Path) -> None:
    rows = documents(200)
    spec = CorpusSpec(
        [str(written(tmp_path / "a.jsonl", rows))], SPEC, str(tmp_path / "o"), keys=["content"], append_eod=True
    )
    made = run(spec)
    found = contents(spec.output("content"), None, 3, 10_000, whole=True)
    theirs = IndexedDataset(spec.output("content"))  # its arrays end with it
    lengths = theirs.sequence_lengths
    assert (found.documents, found.tokens) == (200, made.counts.tokens) == (200, int(lengths.sum()))
    assert found.empty_documents == made.counts.empty > 0
    assert found.lengths["median"] == np.sort(lengths)[(len(lengths) - 1) // 2]
    assert (found.lengths["shortest"], found.lengths["longest"]) == (lengths.min(), lengths.max())
    assert found.ends == 200 - made.counts.empty
    text = found.samples[0].text
    body = rows[0]["content"]
    assert text == ("".join(body) if isinstance(body, list) else f"{body}") + "<|endoftext|>"


def test_damaged_pairs_are_named(tmp_path: Path) -> None:
    """Cut off or altered anywhere, a pair is refused in one message, or read."""
    run(CorpusSpec([str(written(tmp_path / "a.jsonl", documents(60)))], SPEC, str(tmp_path / "o"), keys=["content"]))
    prefix = f"{tmp_path / 'o'}_content_document"
    whole = {end: Path(f"{prefix}{end}").read_bytes() for end in (".idx", ".bin")}
    draw = random.Random(3)
    messages: list[str] = []
    for _ in range(300):
        end = draw.choice([".idx", ".idx", ".bin"])
        data = bytearray(whole[end])
        if draw.random() < 0.4:
            del data[draw.randrange(len(data)) :]
        else:
            for _ in range(draw.choice([1, 4])):
                data[draw.randrange(len(data)) if draw.random() < 0.7 else draw.randrange(34)] = draw.randrange(256)
        Path(f"{prefix}{end}").write_bytes(data)
        try:
            contents(prefix, None, 5, 50, whole=True)
        except DataError as error:
            messages.append(str(error))
        Path(f"{prefix}{end}").write_bytes(whole[end])
    assert len(messages) > 150
    assert [text for text in messages if not text.startswith(str(tmp_path)) or "\n" in text] == []
    with pytest.raises(DataError, match="give the prefix"):
        contents(str(tmp_path / "none"), None, 1, 1, whole=False)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_merged_parts_are_what_one_writer_writes(tmp_path: Path, dtype: str) -> None:
    draw = np.random.default_rng(5)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.dtype(dtype).type)
    parts = []
    for number in range(4):
        files = PartFiles(tmp_path, number)
        writer = PartWriter(files, 0, dtype)
        for _ in range(number):
            counts = draw.integers(0, 5, size=6)
            owner = np.sort(draw.integers(0, 4, size=6))
            tokens = draw.integers(0, 60_000, size=int(counts.sum()))
            writer.add(tokens, counts, owner, 4, None)
            for document in range(4):
                own = tokens[np.repeat(owner, counts) == document]
                builder.add_document(own, [int(one) for one in counts[owner == document] if one])
        writer.close()
        parts.append(files)
    builder.finalize(str(tmp_path / "theirs.idx"))
    merge(parts, 0, str(tmp_path / "ours"), dtype)
    assert same(str(tmp_path / "ours"), tmp_path / "theirs")


def test_counts_add_up() -> None:
    one = Counts(1, 2, 3, 4, 5, ["a", "b"])
    assert one + one == Counts(2, 4, 6, 8, 10, ["a", "b", "a"])


def test_broken_off_while_the_parts_are_joined_it_is_joined_again(tmp_path: Path) -> None:
    """Between the data sets of two keys, when one is complete and has no record yet."""
    source = written(tmp_path / "a.jsonl", documents(50))
    spec = CorpusSpec([str(source)], SPEC, str(tmp_path / "o"), keys=["content", "other"])
    whole = run(replace(spec, prefix=str(tmp_path / "whole")))
    job = make_job(spec)
    spec.parts_folder.mkdir()
    counts = Worker(job, lambda *counts: None).run(0)
    calls = iter(range(100))

    def stops() -> None:
        if Path(f"{spec.output('content')}.idx").exists() and next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizing.finish(job, counts, 1.0, stops)
    assert Path(f"{spec.output('content')}.idx").exists()
    assert not spec.record.exists()
    made = run(spec)
    assert all(same(one, Path(other)) for one, other in zip(made.outputs, whole.outputs, strict=True))


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a**b", "**/../*"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, pattern: str) -> None:
    written(tmp_path / "a.jsonl", documents(3))
    with pytest.raises(DataError, match="--pattern"):
        make_job(CorpusSpec([str(tmp_path)], SPEC, str(tmp_path / "o"), pattern=pattern))
