"""Resuming on other devices keeps the global batch, and says which devices can share it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclm.core.errors import HpclmError
from hpclm.core.spec import StageSpec
from hpclm.runs.rescaling import _rescaled
from tests.support.engine_harness import Split, stage_spec


@pytest.mark.parametrize(("nodes", "steps"), [(2, 2), (1, 4)])
def test_micro_batches_follow_the_replicas(tmp_path: Path, nodes: int, steps: int) -> None:
    found = _rescaled(stage_spec(tmp_path, tmp_path, "pretrain", Split(1, 2, 1, virtual=2)), nodes, 2)
    assert isinstance(found, StageSpec)
    assert found.parallel.data == nodes
    assert found.batch.gradient_accumulation_steps == steps


def test_interleaved_stages_need_whole_groups_of_micro_batches(tmp_path: Path) -> None:
    spec = stage_spec(tmp_path, tmp_path, "pretrain", Split(1, 2, 1, virtual=2))
    with pytest.raises(HpclmError, match=r"4 replicas make 1 micro-batches .* multiple of pipeline 2; choose 2 or 4"):
        _rescaled(spec, 4, 2)


def test_experts_need_whole_groups_of_devices(tmp_path: Path) -> None:
    spec = stage_spec(tmp_path, tmp_path, "pretrain", Split(1, 1, 4, expert=4))
    with pytest.raises(HpclmError, match=r"2 devices are not a multiple of expert 4 .* choose a multiple of 4"):
        _rescaled(spec, 1, 2)
    found = _rescaled(stage_spec(tmp_path, tmp_path, "pretrain", Split(1, 1, 4, expert=2)), 1, 2)
    assert (found.parallel.data, found.parallel.expert, found.parallel.expert_data) == (2, 2, 1)
