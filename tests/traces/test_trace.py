"""`plan --trace`: the engine's own code without memory, and what it says of a rank."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.errors import HpclmError
from hpclm.core.spec import StageSpec
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.planning import make_plan, tracing
from hpclm.planning.plan import Plan
from hpclm.recipe import load
from tests.support.samples import changed, write

ROOT = Path(__file__).parents[2]
ALONE = (("container", None), ("parallel.tensor", 1), ("resources.devices_per_node", 1))


def plan_of(folder: Path, *changes: tuple[str, Any]) -> Plan:
    made = make_plan(load(write(folder, changed(("container", None), *changes))))
    assert not made.errors, made.errors
    return made


def spec_of(made: Plan, stage: str) -> StageSpec:
    spec = next(one.spec for one in made.stages if one.name == stage)
    assert isinstance(spec, StageSpec)
    return spec


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["pretrain", "ptune", "evaluate"])
def test_a_run_with_memory_holds_what_the_trace_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Groups, stage: str
) -> None:
    """The same counter, on real tensors of a real rank."""
    from hpclm.engines.megatron.ranks import trace
    from hpclm.engines.megatron.ranks.optimizer import Optimizer
    from hpclm.worker.ranks.storage_counter import StorageCounter

    norm = Optimizer._gradient_norm
    # nobody has set the weights
    monkeypatch.setattr(Optimizer, "_gradient_norm", lambda self, gradients: [norm(self, gradients), 1.0][1])

    made = plan_of(tmp_path, *ALONE)
    spec = spec_of(made, stage)
    counter = StorageCounter()
    trace._tell_kinds(counter, spec)
    with counter:
        (trace._answers if stage == "evaluate" else trace._steps)(spec, alone, counter)
    (found,) = [one for one in tracing.trace(made, 0) if one.stage == stage]
    assert found.error is None
    assert found.peak_bytes == pytest.approx(counter.peak.total, rel=0.01)
    for kind in {*found.bytes_by_kind, *counter.peak.kinds}:
        real = counter.peak.kinds.get(kind, 0)
        assert found.bytes_by_kind.get(kind, 0) == pytest.approx(real, rel=0.02, abs=2048), kind


@pytest.mark.slow
def test_what_is_known_of_a_stage_is_found(tmp_path: Path) -> None:
    made = plan_of(tmp_path, *ALONE, ("stages", [{"name": "pretrain", "task": "pretrain"}]))
    (found,) = tracing.trace(made, None)
    memory = made.stages[0].memory
    assert memory is not None
    assert found.bytes_by_kind["weights"] == pytest.approx(memory.weights, rel=0.05)
    assert found.bytes_by_kind["optimizer"] == pytest.approx(memory.optimizer, rel=0.05)
    assert found.peak_bytes == pytest.approx(memory.total, rel=0.25)
    assert found.where[0].startswith(("megatron/core/", "hpclm/"))


@pytest.mark.slow
def test_recomputation_and_more_ranks_hold_less(tmp_path: Path) -> None:
    stages = ("stages", [{"name": "pretrain", "task": "pretrain"}])
    full = {"granularity": "full", "method": "uniform", "num_layers": 1}

    def held(folder: str, *changes: tuple[str, Any]) -> dict[str, int]:
        (tmp_path / folder).mkdir()
        found = tracing.trace(plan_of(tmp_path / folder, stages, *changes), None)
        assert [one.error for one in found] == [None] * len(found)
        return max(found, key=lambda one: one.peak_bytes).bytes_by_kind

    plain = held("plain", *ALONE[1:])
    assert held("recomputed", *ALONE[1:], ("trainer.recompute", full))["activations"] < 0.6 * plain["activations"]
    assert held("split")["weights"] < 0.6 * plain["weights"]
    assert held("staged", ("parallel.tensor", 1), ("parallel.pipeline", 2))["weights"] < 0.8 * plain["weights"]


@pytest.mark.slow
def test_an_error_of_the_engine_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpclm.cli import traces

    made = plan_of(tmp_path, ("stages", [{"name": "pretrain", "task": "pretrain"}]))
    spec = spec_of(made, "pretrain")
    broken = dataclasses.replace(spec, model=dataclasses.replace(spec.model, num_attention_heads=3))
    stage = dataclasses.replace(made.stages[0], spec=broken)
    found = tracing.trace(dataclasses.replace(made, stages=(stage,)), 1)
    assert found[0].error is not None
    with pytest.raises(HpclmError, match=r"stage pretrain, rank 1: the engine fails: .*\n  at (megatron|hpclm)/"):
        traces.refuse_failed(found)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write(tmp_path, changed(("container", None)))
    assert cli.run(["plan", str(recipe), "--trace", "--json"]) == 0
    traced = json.loads(capsys.readouterr().out)["trace"]
    assert [(one["stage"], one["rank"], one["error"]) for one in traced] == [
        ("pretrain", 0, None), ("ptune", 0, None), ("evaluate", 0, None),
    ]  # fmt: skip
    assert cli.run(["plan", str(recipe), "--trace", "--rank", "1"]) == 0
    said = capsys.readouterr()
    assert "trace of stage ptune, rank 1: " in said.out
    assert "the plan's estimate is" in said.out
    assert "tracing stage pretrain, rank 1 of 2" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rank", "1"), "only with --trace"),
        (("--trace", "--rank", "2"), "--rank 2: stage pretrain has ranks 0 to 1"),
        (("--trace", "--rank", "first"), "--rank first: must be the number of a rank, or worst"),
    ],
)
def test_a_rank_that_there_is_not_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert cli.run(["plan", str(write(tmp_path, changed(("container", None)))), *words]) != 0
    assert said in capsys.readouterr().err


def test_a_machine_without_the_engine_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan_of(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HpclmError, match=r"needs torch, megatron.*install hpclm\[engine\]"):
        tracing.trace(made, None)


GATED = (("model.activation", "swiglu"), ("model.normalization", "rmsnorm"), ("model.position_embedding", "rope"))
FULL = {"granularity": "full", "method": "uniform", "num_layers": 1}
WIDE = (("model.hidden_size", 512), ("model.num_layers", 4), ("text.seq_length", 64), ("data.max_seq_length", 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        (),
        GATED,
        (("parallel.sequence", True), *GATED),
        (("parallel.tensor", 1), ("parallel.pipeline", 2), ("batch.micro", 2)),
        (("trainer.recompute", FULL),),
        (("trainer.precision", "bf16"), ("resources.device", "gpu"), *GATED),
        (("model.attention_dropout", 0.1), ("text.seq_length", 256), ("model.max_position_embeddings", 256)),
    ],
    ids=["gpt", "llama", "sequence", "pipeline", "recomputed", "bf16", "scores on a CPU"],
)
def test_the_plans_estimate_is_what_the_engine_holds(tmp_path: Path, changes: tuple[tuple[str, Any], ...]) -> None:
    made = plan_of(tmp_path, *WIDE, ("batch", {"global": 16, "micro": 8}), *changes)
    for one in tracing.worst(tracing.trace(made, None)).values():
        held = one.peak_bytes - one.bytes_by_kind.get("workspaces", 0)  # these come on top of the estimate
        assert one.estimate_bytes == pytest.approx(held, rel=0.15), (one.stage, one.bytes_by_kind)
