"""`hpclm doctor` on this machine: its text and JSON output, and the check of a recipe."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from hpclm.core.errors import SiteError
from hpclm.core.site import SiteContainer
from hpclm.nodes import nvml
from hpclm.nodes.diagnosis import compare
from hpclm.nodes.node_facts import FolderFacts, NodeFacts
from hpclm.nodes.nvml import Gpu, Probe
from hpclm.schedulers.slurm.survey import NodeState, choose, options, script
from tests.support.fake_nvml import call, machine
from tests.support.processes import hpclm
from tests.support.samples import changed, write
from tests.support.sites import SLURM


def recipe(folder: Path, precision: str, **model: int) -> str:
    """A pretrain stage on two GPUs."""
    made = changed(
        ("container", None),
        ("stages", [{"name": "pretrain", "task": "pretrain"}]),
        ("resources", {"nodes": 1, "devices_per_node": 2, "device": "gpu", "time_limit_min": 10}),
        ("parallel", {"tensor": 2, "pipeline": 1}),
        ("trainer", {"max_steps": 2, "precision": precision}),
    )
    made["model"].update(model)
    for key in ("data", "task_templates", "prompt", "generation"):
        del made[key]
    return str(write(folder, made))


def doctor(what: str, folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = call(machine(what), "-m", "hpclm.cli", "doctor", "--runs-dir", str(folder / "runs"), *arguments)
    return done.returncode, done.stdout, done.stderr


def test_a_healthy_machine_is_a_table_and_exit_code_0(tmp_path: Path) -> None:
    code, out, err = doctor("h100", tmp_path)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "where what state found for the recipe"
    assert (
        "here gpu ok 8 × NVIDIA H100 80GB HBM3, 80 GiB, capability 9.0, 18 NVLinks up fp32, fp16, bf16, tf32, fp8"
        in lines
    )
    assert "here driver ok driver 550.54.15, CUDA up to 12.4 images for CUDA 12 and older" in lines
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["v100,ecc", "h100,fabric", "a100,remap", "a100,pending", "a100,lost", "mismatch"])
def test_a_sick_machine_is_exit_code_4(tmp_path: Path, what: str) -> None:
    code, out, _ = doctor(what, tmp_path, "--json")
    found = json.loads(out)
    if what == "mismatch":  # nothing here is known to need the GPUs
        assert (code, found["state"]) == (0, "warning")
    else:
        assert (code, found["state"]) == (4, "error")


def test_a_machine_without_a_driver_is_not_called_ok(tmp_path: Path) -> None:
    if nvml.probe().state != "no-library":
        pytest.skip("this machine has NVIDIA's driver")
    done = hpclm("doctor", "--runs-dir", tmp_path / "runs")
    assert [line.split()[:3] for line in done.splitlines() if " gpu " in line] == [["here", "gpu", "none"]]


def test_warnings_alone_are_exit_code_0(tmp_path: Path) -> None:
    code, out, _ = doctor("a100,busy", tmp_path)
    assert code == 0
    assert "GPU 1 is in use by others: process 4711 80896 MiB" in out


def test_a_recipe_that_asks_what_the_gpus_lack_is_told_so(tmp_path: Path) -> None:
    code, out, err = doctor("v100,x2", tmp_path, "--recipe", recipe(tmp_path, "bf16"), "--json")
    found = json.loads(out)
    assert (code, err) == (4, "")
    (problem,) = [row for row in found["findings"] if row["check"] == "precision"]
    assert (problem["severity"], problem["means"]) == ("error", "stage pretrain cannot run here")
    assert "bf16 needs compute capability 8.0, Tesla V100-SXM2-32GB has 7.0" in problem["found"]


def test_a_recipe_that_the_gpus_fit_has_no_fault_of_theirs(tmp_path: Path) -> None:
    _, out, _ = doctor("a100,x2", tmp_path, "--recipe", recipe(tmp_path, "bf16"), "--json")
    assert [row for row in json.loads(out)["findings"] if row["node"] == "here" and row["severity"] == "error"] == []


def test_fewer_gpus_and_less_memory_than_a_recipe_needs(tmp_path: Path) -> None:
    large = recipe(tmp_path, "fp16", num_layers=6, hidden_size=12288, num_attention_heads=48)
    _, out, _ = doctor("v100,x1", tmp_path, "--recipe", large, "--json")
    wrong = {row["check"]: row["found"] for row in json.loads(out)["findings"] if row["severity"] == "error"}
    assert wrong["gpu count"] == "2 GPUs are needed, 1 found"
    assert "Tesla V100-SXM2-32GB has 32.0" in wrong["gpu memory"]
    assert "raise parallel.tensor" in wrong["gpu memory"]


def test_a_broken_recipe_is_one_message(tmp_path: Path) -> None:
    code, out, err = doctor("a100", tmp_path, "--recipe", str(tmp_path / "none.yaml"))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_nodes_need_a_scheduler(tmp_path: Path) -> None:
    code, out, err = doctor("a100", tmp_path, "--nodes", "all")
    assert (code, out) == (4, "")
    assert err == "error: --nodes: site local has no scheduler; choose a Slurm site with --site\n"


NODES = {
    "a": NodeState("a", "allocated", 8),
    "b": NodeState("b", "idle", 8),
    "c": NodeState("c", "drained", 8, "bad fan"),
    "d": NodeState("d", "idle~", 8),
    "e": NodeState("e", "idle*", 8),
}


def test_all_asks_those_that_are_free_and_says_why_not_the_others() -> None:
    asked, why = choose("all", NODES)
    assert [node.name for node in asked] == ["b", "d"]
    assert why == {"a": "is busy (allocated); not checked", "c": "is drained: bad fan", "e": "is idle*"}


def test_a_number_takes_the_free_first_and_more_than_there_are_is_a_message() -> None:
    assert [node.name for node in choose("2", NODES)[0]] == ["b", "d"]
    assert [node.name for node in choose("3", NODES)[0]] == ["b", "d", "a"]
    for strange in ("0", "6"):
        with pytest.raises(SiteError, match=f"--nodes {strange}: the partition has 5 nodes; ask for 1 to 5"):
            choose(strange, NODES)


def test_the_job_is_the_sites_and_hostile_folders_are_words(tmp_path: Path) -> None:
    site = SLURM.__class__(
        "x", "slurm", account="me", qos="high", gpu_request="gres", python=("/opt/py",), environment={"A": "$(b)"},
        container=SiteContainer("none"), sbatch={"reservation": "course"},
    )  # fmt: skip
    folder = tmp_path / "$(touch x); 'y'"
    given = options(site, "gpu", [NODES["b"], NODES["d"]], 8, folder)
    for wanted in ("--account=me", "--qos=high", "--gres=gpu:8", "--nodelist=b,d", "--time=5", "--reservation=course"):
        assert wanted in given
    text = script(site, tmp_path, folder)
    assert "export A='$(b)'\n" in text
    for line in text.splitlines():
        assert "touch" not in line or shlex.split(line)  # one quoted word, and no open quote
    (payload,) = [word for word in shlex.split(text) if word.startswith("PYTHONPATH=")]
    assert payload == f"PYTHONPATH={folder}/payload"


def facts(name: str, skew: float, driver: str = "550") -> NodeFacts:
    folder = FolderFacts("/runs", visible=True, writable=True, skew_s=skew)
    return NodeFacts(name, "6.1", "3.11", 8, 1, Probe("ok", driver=driver, gpus=(Gpu(0, name),)), folder)


def test_what_only_the_comparison_shows() -> None:
    nodes = {"a": facts("A100", 0.0), "b": facts("A100", 40.0), "c": facts("V100", 0.0, "470")}
    found = [(row.node, row.check, row.severity) for row in compare(facts("", 0.1), nodes)]
    assert found == [("c", "gpu types", "warning"), ("cluster", "driver", "warning"), ("b", "clock", "warning")]
