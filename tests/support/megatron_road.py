"""Hugging Face's post "How to train a Language Model with Megatron-LM" with hpclm, from its first command to its last:
JSONL is tokenised, a GPT pre-trained with tensor, pipeline and data parallelism, the checkpoint converted, and
transformers generates code with it. The corpus is the standard library, the model small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpclm.data.tokenizers import Tokenizer
from tests.support.processes import hpclm

ROOT = Path(__file__).parents[2]
PROMPT = "import os\n\ndef "
SMALLER = [
    *("model.num_layers=2", "model.hidden_size=64", "model.num_attention_heads=4", "model.max_position_embeddings=128"),
    *("model.hidden_dropout=0", "model.attention_dropout=0", "indexed.seq_length=64", "trainer.precision=fp32"),
    *("trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.val_batches=2", "optim.lr=5e-3"),
    *("batch.global=16", "batch.micro=4", "optim.schedule.warmup_steps=5", "checkpoint.save_interval_steps=20"),
    *("resources.device=cpu", "model.vocab_size=1000"),
]
# the post's model, which one GPU trains in minutes to where code is better than a guess
SHORTER = [
    *("trainer.max_steps=80", "trainer.val_check_interval=40", "trainer.val_batches=2", "checkpoint.keep_last=1"),
    *("optim.schedule.warmup_steps=10", "checkpoint.save_interval_steps=80", "resources.device=gpu"),
]
# greedy, as generate() is where generation_config.json says nothing else
GENERATED = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, prompt = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
made = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)
print(tokenizer.decode(made[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True), end="")
"""


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: Path | None = None) -> None:
    """What the post begins with: codeparrot_data.json, vocab.json and merges.txt, in the current folder.

    Args:
        vocabulary: folder of the two files; None trains a small one on a part of the corpus, which then is all of it.
    """
    monkeypatch.chdir(folder)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    texts = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(Path(os.__file__).parent.glob("[a-g]*.py" if vocabulary is None else "*.py"))
    ]
    lines = (json.dumps({"content": text, "path": "x"}) for text in texts)
    (folder / "codeparrot_data.json").write_text("".join(f"{line}\n" for line in lines))
    if vocabulary is None:
        Tokenizer.train(texts, 1000).backend.model.save(str(folder))
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(vocabulary / name, folder)
    (folder / "recipes").mkdir()
    shutil.copy(ROOT / "recipes" / "codeparrot_small.yaml", folder / "recipes")


def road(folder: Path, *where: str, settings: Sequence[str] = SMALLER, guess: float = 6.9) -> str:
    """Every command of the post. Returns what the model says after `PROMPT`; its losses are less than that of a guess
    among all tokens."""
    tokenizer = ("--vocab-file", "vocab.json", "--merges-file", "merges.txt")
    hpclm(
        *("data", "tokenize", "codeparrot_data.json", "--json-keys", "content", "--append-eod", *tokenizer),
        *("--out", "codeparrot"),
    )
    seen = hpclm("data", "inspect", "codeparrot_content_document", "--all")
    assert "vocab.json" in seen
    assert "end tokens" in seen
    hpclm("submit", "recipes/codeparrot_small.yaml", *settings, *where, "--wait", timeout=900)
    (run,) = json.loads(hpclm("status", "--json"))["runs"]
    assert run["state"] == "completed"
    file = Path(run["path"], "stages", "pretrain", "metrics.jsonl")
    metrics = [json.loads(line) for line in file.read_text().splitlines()]
    curve = [one["loss"] for one in metrics if one["kind"] == "validation"]
    assert len(curve) == 2
    assert curve[-1] < curve[0] < guess
    assert list(Path(run["path"], "stages", "pretrain").glob("tensorboard/events.*"))
    checkpoints = Path(run["path"], "stages", "pretrain", "checkpoints")
    hpclm("model", "convert", str(checkpoints), "codeparrot-small", "--to", "huggingface")
    words = [sys.executable, "-W", "ignore", "-c", GENERATED, "codeparrot-small", PROMPT]
    theirs = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    assert theirs.returncode == 0, theirs.stderr
    made = hpclm("generate", "codeparrot-", PROMPT, "--max-new-tokens", "24", "--json", "--device", "cpu")
    (answer,) = json.loads(made)["answers"]
    assert answer["text"] == theirs.stdout
    assert answer["text"]
    return str(answer["text"])
