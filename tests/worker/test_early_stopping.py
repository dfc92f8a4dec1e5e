"""Early stopping: after so many validations that are no better, with the best checkpoint kept and a resume that counts
on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpclm.core.early_stopping import EarlyStopping
from hpclm.core.spec import EarlyStoppingSpec
from tests.support.engine_harness import losses, result, run, stage_spec, write_data


def test_only_a_loss_lower_by_more_than_min_delta_counts() -> None:
    stopping = EarlyStopping(EarlyStoppingSpec(patience=2, min_delta=0.1))
    seen = []
    for loss in (3.0, 2.95, 2.85, 2.8, 2.76):
        stopping.observe(loss)
        seen.append((stopping.stale, stopping.should_stop))
    assert seen == [(0, False), (1, False), (0, False), (1, False), (2, True)]
    other = EarlyStopping(EarlyStoppingSpec(patience=2, min_delta=0.1))
    other.restore(stopping.state())
    assert other.should_stop
    never = EarlyStopping(None)
    for _ in range(99):
        never.observe(1.0)
    assert not never.should_stop


@pytest.mark.slow
def test_a_stage_ends_when_it_learns_no_more_and_keeps_its_best(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_data(data)
    # a rate that drives the loss up after the first validations
    spec = stage_spec(tmp_path / "stage", data, "pretrain", steps=60, validate=3, lr=0.3)
    stopping = EarlyStoppingSpec(patience=3, min_delta=0.0)
    paths = run(replace(spec, trainer=replace(spec.trainer, early_stopping=stopping)))
    found, curve = result(paths), losses(paths, "validation")
    assert found["stopped_early"]
    assert found["steps"] == 3 * len(curve) < 60
    best = curve.index(min(curve))
    assert len(curve) == best + 1 + 3
    assert found["best_checkpoint"] == f"step-{3 * (best + 1):08d}"
    assert paths.checkpoint(3 * (best + 1)).is_dir()
