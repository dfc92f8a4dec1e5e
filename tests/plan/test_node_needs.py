"""What a node is asked for is what the plan says; what the ranks refuse, the plan refuses first."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpclm.core.layout import RunPaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import NodeNeeds, RecoverySpec, StageSpec
from hpclm.nodes.need import need_of
from hpclm.planning import Plan, make_plan
from hpclm.planning.engine_protocol import engine_named
from hpclm.planning.specs import checkpoints_of, placed, stage_specs
from hpclm.recipe import load
from tests.support.samples import ROW, changed, write


@dataclass(frozen=True)
class OutsideSpec:
    """As an engine of another package has one."""

    stage: str
    task: str
    device: Literal["cpu", "gpu"]
    parallel: ParallelSpec
    base: str | None = None
    suffix: str = "!"
    run: str = ""
    stage_dir: str = ""
    runner: str = "outside:run"
    recovery: RecoverySpec = field(default_factory=RecoverySpec)
    needs: NodeNeeds = field(default_factory=NodeNeeds)


GPT20B = {"num_layers": 44, "hidden_size": 6144, "num_attention_heads": 64, "max_position_embeddings": 2048}
FULL = {"granularity": "full", "method": "uniform", "num_layers": 1}


def plan_of(folder: Path, *changes: tuple[str, Any], **options: Any) -> Plan:
    return make_plan(load(write(folder, changed(*changes))), **options)


def test_a_node_needs_the_memory_of_the_plan(tmp_path: Path) -> None:
    """With recomputed activations a 20B model fits GPUs that it does not fit without."""
    needed = [_memory_needed(tmp_path, recompute) >> 30 for recompute in (None, FULL)]
    assert needed == [43, 18]


def _memory_needed(folder: Path, recompute: dict[str, Any] | None) -> int:
    changes = [
        ("model", GPT20B),
        ("tokenizer", {"train": {"vocab_size": 50257}}),
        ("resources", {"nodes": 1, "devices_per_node": 4, "device": "gpu", "time_limit_min": 10}),
        ("parallel", {"tensor": 4}),
        ("batch", {"global": 8, "micro": 8}),
        ("text.seq_length", 2048),
        ("data.max_seq_length", 2048),
        ("trainer", {"max_steps": 10, "precision": "bf16", "recompute": recompute}),
    ]
    stage = plan_of(folder, *changes, files=False).stages[1]
    assert stage.memory is not None
    assert stage.spec is not None
    need = need_of(stage.spec.parallel, stage.spec.needs)
    assert need.memory_mib == stage.memory.total >> 20
    return stage.memory.total


def test_the_nodes_check_the_packages_that_the_engine_names(tmp_path: Path) -> None:
    for stage in plan_of(tmp_path).stages:
        assert stage.spec is not None
        assert tuple(stage.spec.needs.packages) == engine_named(stage.engine).packages


def test_every_file_that_a_stage_reads_is_checked_on_the_nodes(tmp_path: Path) -> None:
    read = {stage.name: stage.spec.needs.inputs for stage in plan_of(tmp_path).stages if stage.spec}
    names = {stage: [Path(one).name for one in paths] for stage, paths in read.items()}
    assert names == {"pretrain": ["text"], "ptune": ["train.jsonl", "validation.jsonl"], "evaluate": ["test.jsonl"]}


def test_whatever_its_engine_a_stage_finds_the_checkpoints_of_another(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    made = stage_specs(plan, "run-1", tmp_path / "run-1")
    first, *others = made
    assert isinstance(first, StageSpec)
    outside = OutsideSpec(first.stage, first.task, first.device, first.parallel, base=checkpoints_of("pretrain"))
    found = placed(outside, "run-1", RunPaths(tmp_path / "run-1"))
    assert isinstance(found, OutsideSpec)
    checkpoints = str(tmp_path / "run-1" / "stages" / "pretrain" / "checkpoints")
    assert (found.base, found.suffix, found.run) == (checkpoints, "!", "run-1")
    assert [one.base for one in others if isinstance(one, StageSpec)] == [checkpoints, checkpoints]


def test_half_a_surrogate_pair_is_refused_by_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path, changed())
    (tmp_path / "train.jsonl").write_text(json.dumps({**ROW, "words": "\ud800"}) + "\n")
    found = [one.message for one in make_plan(load(path)).findings if "surrogate" in one.message]
    assert found == ["words has half of a surrogate pair, which is not a character; correct the \\u escape"]
