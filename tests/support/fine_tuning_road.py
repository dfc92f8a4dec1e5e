"""The road of a user who fine-tunes: a model and rows of this machine's own Python, the shipped recipe, scores, and a
merged model that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, python

RECIPE = "recipes/tiny_llama_alpaca.yaml"
# greedy, of prompts one by one
GENERATED = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, file, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
made = []
for line in open(file).read().splitlines()[:count]:
    inputs = tokenizer(json.loads(line)["prompt"], return_tensors="pt", return_token_type_ids=False)
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0][inputs["input_ids"].shape[1]:]
    made.append(tokenizer.decode(tokens, skip_special_tokens=True))
print(json.dumps(made))
"""


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe, and what its first command makes, in the current folder."""
    monkeypatch.chdir(folder)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    (folder / "recipes").mkdir()
    for name in (RECIPE, "recipes/tiny_llama.py"):
        shutil.copy(ROOT / name, folder / name)
    done = python("recipes/tiny_llama.py", "tiny-llama")
    assert done.returncode == 0, done.stderr


def the_run(folder: Path = Path("runs")) -> Path:
    (found,) = (path.parent for path in folder.glob("*/run.json"))
    return found


def result(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "stages" / stage / "result.json").read_text())
    return found


def exact_match(run: Path, stage: str) -> float:
    return float(result(run, stage)["scores"]["instructions"]["exact_match"])


def generated(model: Path, predictions: Path, count: int) -> list[str]:
    """What transformers says to the first prompts of a run's predictions."""
    done = python("-W", "ignore", "-c", GENERATED, model, predictions, str(count))
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found
