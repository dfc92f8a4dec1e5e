"""A corpus tokenised by the ranks of two nodes of the real Slurm, and a model trained on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from hpclm.core.files import read_object
from launch.dev_cluster import Cluster
from tests.support.megatron_road import prepare
from tests.support.processes import hpclm

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_over_two_nodes(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    stages = [
        {
            "name": "tokens",
            "task": "tokenize",
            "tokenize": {"inputs": ["codeparrot_data.json"], "json_keys": ["content"], "append_eod": True},
        },
        {
            "name": "pretrain",
            "task": "pretrain",
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 32},
            "indexed": {"stage": "tokens", "seq_length": 32},
            "batch": {"global": 8, "micro": 2},
            "trainer": {"max_steps": 2, "val_batches": 1},
            "optim": {"lr": 1e-3},
        },
    ]
    resources = {"nodes": 2, "devices_per_node": 2, "device": "cpu", "time_limit_min": 5, "memory_gib": 2}
    tokenizer = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    whole = {"version": 1, "name": "corpus", "tokenizer": tokenizer, "resources": resources, "stages": stages}
    Path("recipe.yaml").write_text(yaml.safe_dump(whole))
    shown = json.loads(hpclm("submit", "recipe.yaml", "--site", "slurm", "--wait", "--json"))
    assert [stage["state"] for stage in shown["stages"]] == ["completed", "completed"]
    result = read_object(Path(shown["path"], "stages", "tokens", "result.json")) or {}
    assert result["world_size"] == 4
    assert result["documents"] == len(list(Path(os.__file__).parent.glob("[a-g]*.py")))
