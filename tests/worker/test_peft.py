"""hpclm's prompt learning computes the same as PEFT, on the same weights."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def difference() -> dict[str, float]:
    done = python("-m", "tests.worker.peft_agreement")
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_encoders_give_pefts_virtual_tokens(difference: dict[str, float], encoder: str) -> None:
    assert difference[encoder] < 1e-6


def test_a_training_step_is_pefts(difference: dict[str, float]) -> None:
    assert difference["loss"] < 1e-5
    assert difference["grad_norm"] < 1e-5
    assert difference["weights"] < 1e-5
    # and it did move the weights by far more than that
    assert difference["moved"] > 1e-4
