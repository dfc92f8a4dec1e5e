"""Fine-tuning over two nodes of the real Slurm, a rank killed on the way: the losses and weights of one machine,
and the same answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from hpclm.core.files import read_lines, read_object
from hpclm.core.layout import StagePaths
from launch.dev_cluster import Cluster
from tests.support.fine_tuning_road import exact_match, prepare, result, the_run
from tests.support.processes import hpclm
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS, SAVE = 40, 10
ROWS = {name: [f"tiny-llama/{name}.jsonl"] for name in ("train", "validation", "test")}
RECIPE = {
    "version": 1,
    "name": "road",
    "model": {"checkpoint": "tiny-llama/model"},
    "resources": {"nodes": 1, "devices_per_node": 4, "device": "cpu", "time_limit_min": 20},
    "trainer": {"precision": "fp32", "seed": 1},
    "instructions": {**ROWS, "template": "stanford", "max_seq_length": 128},
    "generation": {"max_new_tokens": 12, "greedy": True, "batch_size": 50},
    "stages": [
        {
            "name": "full",
            "task": "fine-tune",
            "sharding": {"strategy": "fsdp"},
            "batch": {"global": 16, "micro": 4},
            "optim": {"lr": 3e-3, "schedule": {"name": "cosine", "warmup_steps": 5}},
            "trainer": {"max_steps": STEPS, "val_check_interval": STEPS},
            "checkpoint": {"save_interval_steps": SAVE},
        },
        {"name": "answers", "task": "evaluate", "engine": "hf", "base": "full", "resources": {"devices_per_node": 1}},
    ],
}


def submit(runs: Path, *words: str) -> StagePaths:
    """A run's stage that tunes."""
    hpclm("submit", "road.yaml", "--runs-dir", runs, *words, timeout=900)
    return StagePaths(the_run(runs) / "stages" / "full")


def test_over_two_nodes_with_a_rank_killed(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    prepare(tmp_path, monkeypatch)
    Path("road.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    over_two = submit(tmp_path / "slurm", "--site", "slurm", "--nodes", "2", "--devices-per-node", "2")

    def saved() -> bool:
        assert not over_two.result.exists()
        return int((read_object(over_two.latest) or {}).get("step", 0)) >= SAVE

    wait_until(f"checkpoint {SAVE}", saved, pause_s=0.05)
    attempt = over_two.latest_attempt()
    assert attempt is not None
    os.kill((read_object(attempt.rank(3)) or {})["pid"], signal.SIGKILL)
    here = submit(tmp_path / "local", "--wait")
    wait_until("the answers", lambda: (over_two.root.parent / "answers" / "result.json").exists(), pause_s=0.5)

    found, wanted = ([(row["step"], row["loss"]) for row in read_lines(one.metrics)] for one in (over_two, here))
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], abs=1e-5)
    assert len(list(read_lines(over_two.events))) > len(list(read_lines(here.events)))
    names = [path.name for path in sorted(here.checkpoint(STEPS).glob("*.safetensors"))]
    assert len(names) == 4
    for name in names:
        files = [safe_open(str(one.checkpoint(STEPS) / name), framework="pt") for one in (over_two, here)]
        with files[0] as ours, files[1] as theirs:
            assert set(ours.keys()) == set(theirs.keys())
            for key in ours.keys():  # noqa: SIM118
                assert (ours.get_tensor(key) - theirs.get_tensor(key)).abs().max() < 1e-5, key
    scores = [exact_match(one.root.parents[1], "answers") for one in (over_two, here)]
    assert scores[0] == scores[1]
    assert result(the_run(tmp_path / "slurm"), "answers")["examples"] == 200
