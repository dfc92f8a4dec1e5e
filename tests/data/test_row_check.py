"""`hpclm data check`: rows as the model will see them, before anything is submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.core.records import to_dict
from hpclm.core.spec import ModelSpec

RECIPE = """
version: 1
name: check
task: {task}
model:
  {{num_layers: 2, hidden_size: 32, num_attention_heads: 4, max_position_embeddings: 64, checkpoint: {folder}/gone}}
tokenizer: {{vocab_file: {bpe}/vocab.json, merges_file: {bpe}/merges.txt}}
resources: {{device: cpu}}
batch: {{global: 2}}
trainer: {{max_steps: 2}}
optim: {{lr: 0.1}}
data: {{train: [train.jsonl], validation: [train.jsonl], test: [train.jsonl], max_seq_length: 20}}
task_templates:
  - {{taskname: qa, prompt_template: "<|VIRTUAL_PROMPT_0|> Q: {{question}} A:{{answer}}", total_virtual_tokens: 2}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [{"taskname": "qa", "question": f"why {'so ' * n}", "answer": " yes"} for n in (1, 3, 40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def checkpoint(folder: Path) -> None:
    (folder / "gone").mkdir()
    model = ModelSpec(2, 32, 128, 4, 4, 8, 64, 50257, 50304)
    (folder / "gone" / "model.json").write_text(json.dumps(to_dict(model)))


def test_lengths_what_is_left_out_and_what_the_model_sees(
    folder: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(task="p-tuning", folder=folder, bpe=shared_data / "gpt2-bpe"))
    assert cli.run(["data", "check", str(recipe), "--examples", "1"]) == 0
    out = capsys.readouterr().out
    assert "p-tuning train: 3 rows, 0 truncated, 1 left out" in out
    assert "left out: row 3" in out
    assert "|⟨v0⟩⟨v1⟩ Q: why so  A:⟦ yes<|endoftext|>⟧" in out
    assert cli.run(["data", "check", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert [one["role"] for one in found] == ["train", "validation"]
    assert found[0]["lengths"]["shortest"] == 11  # 2 virtual, 7 of the prompt, the answer and the end
    assert found[0]["left_out"] == [2]


def test_a_bad_row_is_named(folder: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(folder)
    (folder / "train.jsonl").write_text('{"taskname": "qa"}\n{"taskname": "qb", "question": "x", "answer": "y"}\n')
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(task="p-tuning", folder=folder, bpe=shared_data / "gpt2-bpe"))
    assert cli.run(["data", "check", str(recipe)]) != 0
    error = capsys.readouterr().err
    assert "train.jsonl:1" in error
    assert "train.jsonl:2" in error
    assert "Traceback" not in error


def test_test_rows_have_the_evaluations_limit(
    folder: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's positions less the answer's tokens: 64 and 30 here, whatever max_seq_length allows."""
    checkpoint(folder)
    recipe = folder / "recipe.yaml"
    text = RECIPE.format(task="evaluate", folder=folder, bpe=shared_data / "gpt2-bpe")
    kept = [line for line in text.splitlines() if not line.startswith(("batch:", "trainer:", "optim:"))]
    recipe.write_text("\n".join(kept).replace("max_seq_length: 20", "max_seq_length: 60") + "\n")
    assert cli.run(["data", "check", str(recipe), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["files"]
    assert (found["role"], found["limit"], found["truncated"]) == ("test", 34, 1)
