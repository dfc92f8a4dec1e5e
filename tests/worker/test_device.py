"""Every tensor of a stage on a GPU is on that GPU: the engine runs on a device that refuses tensors of the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.records import to_dict
from hpclm.planning import make_plan
from hpclm.recipe import load
from tests.support.processes import python
from tests.support.samples import changed, write

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("refusing_device.py")
LLAMA = (
    ("model.num_query_groups", 2),
    ("model.position_embedding", "rope"),
    ("model.activation", "swiglu"),
    ("model.normalization", "rmsnorm"),
    ("model.tie_embeddings", False),
)
DROPOUT = (("model.hidden_dropout", 0.1), ("model.attention_dropout", 0.1))
PIPELINE = (("parallel.tensor", 1), ("parallel.pipeline", 2), ("batch.micro", 2))
SEQUENCE = (("parallel.sequence", True),)
SAMPLED = (("generation", {"max_new_tokens": 4, "greedy": False, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}),)
BF16 = (("trainer.precision", "bf16"), ("resources.device", "gpu"))


def on_the_device(folder: Path, stage: str, changes: tuple[tuple[str, Any], ...], rank: int, **more: bool) -> str:
    made = make_plan(load(write(folder, changed(("container", None), *changes))))
    assert not made.errors, made.errors
    spec = next(one.spec for one in made.stages if one.name == stage)
    asked = json.dumps({"spec": to_dict(spec), "rank": rank, **more})
    done = python("-W", "ignore", PROGRAM, input=asked)
    return done.stdout.strip() if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(
    ("stage", "changes", "rank"),
    [
        ("pretrain", DROPOUT + SEQUENCE + BF16, 1),
        ("pretrain", LLAMA + PIPELINE, 0),
        ("pretrain", PIPELINE + BF16, 1),
        ("ptune", LLAMA + SEQUENCE + BF16, 0),
        ("ptune", PIPELINE, 0),
        ("ptune", PIPELINE + BF16, 1),
        ("ptune", (("prompt", {"encoder": "lstm", "encoder_hidden": 32}),), 0),
        ("evaluate", SAMPLED, 0),
        ("evaluate", PIPELINE + BF16, 1),
    ],
)
def test_everything_is_on_the_ranks_device(
    tmp_path: Path, stage: str, changes: tuple[tuple[str, Any], ...], rank: int
) -> None:
    assert on_the_device(tmp_path, stage, changes, rank) == "together"


@pytest.mark.parametrize("stage", ["pretrain", "ptune", "evaluate"])
def test_a_batch_that_stays_on_the_host_is_found(tmp_path: Path, stage: str) -> None:
    assert "Expected all tensors to be on the same device" in on_the_device(tmp_path, stage, (), 0, stray=True)
