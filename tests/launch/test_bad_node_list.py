"""The bad-node list: entries last a day, can be removed, and cannot inject text into a script."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.core.files import append_line
from hpclm.core.sweep_layout import RunsFolder
from hpclm.recovery import bad_nodes


def note(folder: Path, node: str, at: float, site: str = "mine") -> None:
    fault = {"at": at, "node": node, "site": site, "run": "r", "stage": "s", "reason": "GPU 3 fell off the bus"}
    append_line(RunsFolder(folder).bad_nodes, fault)


def test_a_day_and_no_longer_and_only_on_its_site(tmp_path: Path) -> None:
    now = time.time()
    note(tmp_path, "node1", now - 3600)
    note(tmp_path, "node2", now - 25 * 3600)
    note(tmp_path, "node3", now - 60, site="another")
    assert bad_nodes.suspects(tmp_path, "mine") == ["node1"]
    assert [fault.node for fault in bad_nodes.faults(tmp_path)] == ["node1", "node2", "node3"]


def test_what_is_no_node_is_not_believed(tmp_path: Path) -> None:
    for name in ("a,b", "$(touch x)", "a b", "-n", "", "a\nb"):
        note(tmp_path, name, time.time())
    with RunsFolder(tmp_path).bad_nodes.open("a") as stream:
        stream.write('half a li\n{"node": 3}\n[]\n{"at": "x", "node": "node1"}\n')
    assert bad_nodes.faults(tmp_path) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs-dir", str(tmp_path)]
    assert cli.run(["nodes", *where]) == 0
    assert "no node is reported as faulty" in capsys.readouterr().out
    note(tmp_path, "node1", time.time())
    assert cli.run(["nodes", *where]) == 0
    assert "GPU 3 fell off the bus" in capsys.readouterr().out
    assert cli.run(["nodes", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["faults"][0]["node"] == "node1"
    assert cli.run(["nodes", "--forget", "node1", *where]) == 0
    assert bad_nodes.suspects(tmp_path, "mine") == []
    note(tmp_path, "node1", time.time())
    assert bad_nodes.suspects(tmp_path, "mine") == ["node1"]
    assert cli.run(["nodes", "--forget", "node9", *where]) == 1
