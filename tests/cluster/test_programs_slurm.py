"""An external program on the real scheduler: two nodes, its own rendezvous, and a stop signal that reaches it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from launch.dev_cluster import Cluster
from tests.support.processes import hpclm

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROGRAM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(x)
if os.environ.get("HPCLM_RESTART") == "0" and dist.get_rank() == 1:
    sys.exit(75)
open(f"{sys.argv[1]}/sum-{dist.get_rank()}.txt", "w").write(f"{x.item()} of {dist.get_world_size()}")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("launcher", ["rank", "torchrun"])
def test_over_two_nodes(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "program.py").write_text(PROGRAM)
    argv = [sys.executable, str(tmp_path / "program.py"), "{stage_dir}"]
    # under torchrun, what a program ends with is torchrun's 1
    program = {"argv": argv, "launcher": launcher, "outputs": ["sum-*.txt"], "retry_exit_codes": [75, 1]}
    stage = {"name": "train", "task": "program", "engine": "command", "program": program}
    resources = {"nodes": 2, "devices_per_node": 2, "device": "cpu", "time_limit_min": 5, "memory_gib": 2}
    whole = {"version": 1, "name": "p", "resources": resources, "stages": [stage]}
    Path("recipe.yaml").write_text(yaml.safe_dump(whole))
    shown = hpclm("submit", "recipe.yaml", "--site", "slurm", "--wait", "--json")
    (train,) = json.loads(shown)["stages"]
    assert (train["state"], train["attempts"]) == ("completed", 2)
    sums = {path.read_text() for path in tmp_path.glob("runs/*/stages/train/sum-*.txt")}
    assert sums == {"10.0 of 4"}
