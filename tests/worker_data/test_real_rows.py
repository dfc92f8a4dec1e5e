"""Real rows with GPT-2's vocabulary: ids compared whole, and NeMo's own reading of the assistant set."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.spec import PromptData, TaskTemplate
from hpclm.data.examples import PromptDataset
from hpclm.data.sources import assistant
from hpclm.data.sources.assistant import FOLD
from hpclm.data.tokenizers import Tokenizer

TEMPLATE = TaskTemplate(
    "intent_and_slot",
    "<|VIRTUAL_PROMPT_0|> Predict intent and slot <|VIRTUAL_PROMPT_1|> :\n{utterance}{label}",
    total_virtual_tokens=10,
    virtual_token_splits=[7, 3],
    truncate_field="utterance",
    answer_field="label",
)


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_bpe(shared_data / "gpt2-bpe" / "vocab.json", shared_data / "gpt2-bpe" / "merges.txt")


@pytest.fixture(scope="module")
def made(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assistant")
    assistant(shared_data / "assistant", folder)
    return folder


@pytest.mark.parametrize("semantics", ["strict", "nemo"])
def test_ids_of_real_rows(gpt2: Tokenizer, made: Path, golden: Callable[[str, str], None], semantics: Any) -> None:
    """Every id, slot and weight of twelve rows, for training and for use; some must be cut to fit."""
    files = [str(made / "assistant_val.jsonl")]
    lines = []
    for training in (True, False):
        data = PromptData(max_seq_length=40, semantics=semantics)
        dataset = PromptDataset(files, [TEMPLATE], gpt2, data, training=training)
        lines.append(f"# {len(dataset)} rows, {dataset.skipped} left out, {dataset.truncated} cut")
        for example in dataset.examples[:12]:
            pieces = [
                f"v{number}" if number >= 0 else f"{token}{'*' if weight else ''}"
                for token, number, weight in zip(example.tokens, example.virtual, example.loss_mask, strict=True)
            ]
            lines.append(" ".join(pieces))
    golden(f"assistant-gpt2-{semantics}.txt", "\n".join(lines) + "\n")


def test_every_real_row_fits_or_is_cut_and_its_answer_is_whole(gpt2: Tokenizer, made: Path) -> None:
    dataset = PromptDataset(
        [str(made / "assistant_train.jsonl")], [TEMPLATE], gpt2, PromptData(max_seq_length=64), training=True
    )
    assert len(dataset) + dataset.skipped == 9960
    for example in dataset.examples:
        answer = [token for token, weight in zip(example.tokens, example.loss_mask, strict=True) if weight]
        assert len(example.tokens) <= 64
        assert gpt2.decode(answer[:-1]) == example.answer
        assert answer[-1] == gpt2.eos_id


def test_rows_split_and_order_are_nemos(shared_data: Path, made: Path) -> None:
    """NeMo's reading (assistant_utils.py), written down from its description: lines cut at semicolons, seed 42."""
    fold = shared_data / "assistant" / FOLD

    def said(folder: Path) -> list[tuple[str, str]]:
        found = []
        for path in sorted(folder.glob("*.csv"), key=lambda path: path.stem):
            for line in path.read_text(encoding="utf-8").splitlines()[1:]:
                found.append((line.split(";")[4][1:-1], path.stem))
        return found

    train, test = said(fold / "trainset"), said(fold / "testset" / "csv")
    shuffler = random.Random(42)
    shuffler.shuffle(train)
    half = len(test) // 2
    shuffler.shuffle(test)
    for name, expected in (("train", train), ("val", test[:half]), ("test_ground_truth", test[half:])):
        rows = [json.loads(line) for line in (made / f"assistant_{name}.jsonl").read_text().split("\n") if line]
        intents = [re.match(r"\nIntent: (\S+)\nSlots: ", row["label"]) for row in rows]
        assert [
            (row["utterance"], intent[1] if intent else None) for row, intent in zip(rows, intents, strict=True)
        ] == (expected)
        assert all(list(row) == ["taskname", "utterance", "label"] for row in rows)
