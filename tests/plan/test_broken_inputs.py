"""What a plan accepted and a job died of: tokenizers and checkpoints that are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclm.core.files import write_json
from hpclm.core.records import to_dict
from hpclm.core.spec import ModelSpec
from hpclm.data.tokenizers import Tokenizer
from hpclm.planning import make_plan
from hpclm.recipe import load
from tests.support.checkpoints import SHARD, write_shard

RECIPE = """
version: 1
name: a
task: evaluate
model: {checkpoint: ./model}
data: {test: [rows.jsonl], max_seq_length: 16}
task_templates:
  - taskname: t
    prompt_template: "<|VIRTUAL_PROMPT_0|>{a} {answer}"
    total_virtual_tokens: 1
    virtual_token_splits: [1]
generation: {max_new_tokens: 2}
resources: {device: cpu}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe, its row, and a stage's checkpoints with a tokenizer."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text('{"taskname": "t", "a": "x", "answer": "y"}\n')
    step = tmp_path / "model" / "step-00000002"
    write_shard(step, b"weights")
    write_json(tmp_path / "model" / "model.json", to_dict(ModelSpec(1, 8, 32, 2, 2, 4, 32, 320, 320)))
    Tokenizer.train(["the cat sat on the mat"] * 20, 300).save(tmp_path / "model")
    write_json(tmp_path / "model" / "latest.json", {"checkpoint": step.name, "step": 2})
    return tmp_path


def errors(folder: Path, *settings: str) -> str:
    return "\n".join(map(str, make_plan(load(folder / "recipe.yaml", list(settings))).errors))


def test_a_whole_one_is_taken(folder: Path) -> None:
    assert errors(folder) == ""


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (SHARD, b"weigh", "5 bytes, expected 7; copy the checkpoint again"),
        (SHARD, None, "missing; copy the checkpoint again"),
        ("manifest.json", b'{"format": "hpclm', "cannot be read"),
        ("manifest.json", b'{"format": "hpclm-checkpoint", "version": 1}', "files, tensors, state is missing"),
    ],
    ids=["cut", "gone", "torn manifest", "empty manifest"],
)
def test_a_checkpoint_that_is_not_whole_is_refused(folder: Path, file: str, content: bytes | None, said: str) -> None:
    path = folder / "model" / "step-00000002" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert said in errors(folder)


def test_a_tokenizer_that_the_ranks_cannot_load_is_refused(folder: Path) -> None:
    whole = json.loads((folder / "model" / "tokenizer.json").read_text())
    for name, content in (("whole", whole), ("broken", {**whole, "pre_tokenizer": {"type": "Telepathy"}})):
        (folder / f"{name}.json").write_text(json.dumps(content))
        found = errors(folder, f"tokenizer.tokenizer_file={folder}/{name}.json")
        assert ("not a tokenizer of the tokenizers library" in found) == (name == "broken"), found
