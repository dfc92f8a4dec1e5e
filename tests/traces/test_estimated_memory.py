"""The plan's memory of pre-training, by formula, is what the engine's code holds: more than 30 shapes, each stage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpclm.planning import megatron_memory as memory
from tests.support.processes import environment
from tests.support.rank_server import ForkedRank
from tests.support.traced_shapes import SHAPES
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("traced")
    answer, log = folder / "answer.json", folder / "log"
    env = environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    ran = ForkedRank([str(answer)], env, log, function="tests.support.traced_shapes:write")
    wait_until("the traces", lambda: ran.poll() is not None, seen=lambda: log.read_text()[-2000:], limit_s=1200)
    assert answer.exists(), log.read_text()[-3000:]
    found: dict[str, list[dict[str, Any]]] = json.loads(answer.read_text())
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_formula_and_trace_agree(traced: dict[str, list[dict[str, Any]]], name: str) -> None:
    spec, stages = SHAPES[name], traced[name]
    assert len(stages) == spec.parallel.pipeline
    for number, found in enumerate(stages):
        assert found["error"] is None
        assert found["pipeline_rank"] == number
        estimate = memory.of_stage(spec, number)
        assert estimate is not None
        held = found["peak_bytes"] - found["bytes_by_kind"]["workspaces"]  # these come on top
        assert estimate.total == pytest.approx(held, rel=0.05), (number, found["bytes_by_kind"], estimate)
        assert found["bytes_by_kind"]["weights"] == pytest.approx(estimate.weights, rel=0.05)
        assert found["bytes_by_kind"].get("optimizer", 0) == pytest.approx(estimate.optimizer, rel=0.05)
    worst = memory.memory(spec)
    assert worst is not None
    assert worst.total == pytest.approx(max(one["peak_bytes"] for one in stages), rel=0.07)


def test_recomputed_norms_hold_no_results(traced: dict[str, list[dict[str, Any]]]) -> None:
    (plain,), (less,) = traced["llama"], traced["llama, norms recomputed"]
    model = SHAPES["llama"].model
    results = 2 * model.num_layers * 4096 * model.hidden_size * 2  # two norms a layer, in bf16
    assert plain["peak_bytes"] - less["peak_bytes"] == pytest.approx(results, rel=0.02)
