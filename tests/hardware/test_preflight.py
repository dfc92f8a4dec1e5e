"""The check before the ranks start: what it finds, whether the node or the run is the
cause, and that it does not need torch."""

from __future__ import annotations

import json
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.files import write_json
from hpclm.core.layout import RunPaths
from hpclm.core.node_name import VARIABLES
from hpclm.core.records import from_dict, to_dict
from hpclm.core.spec import NodeNeeds, StageSpec
from hpclm.core.stage_inputs import stage_inputs
from hpclm.nodes import preflight
from hpclm.nodes.gpu_checks import Need
from hpclm.nodes.node_facts import FolderFacts
from hpclm.nodes.preflight import network_findings
from hpclm.planning.engine_protocol import engine_named
from hpclm.planning.megatron_memory import memory
from hpclm.schedulers.slurm.job_script import RANK_VARIABLES
from tests.support.fake_nvml import call, machine, probed
from tests.support.harness import Stage, spec_of

_ENGINE = engine_named("megatron").packages


class Node:
    """A stage's folder, and an interpreter whose engine was built for some CUDA."""

    def __init__(self, folder: Path) -> None:
        self.stage_dir = folder / "it's a run" / "stages" / "train"
        self.attempt = self.stage_dir / "attempts" / "001-00"
        self.image = folder / "image"
        for name in _ENGINE:
            (self.image / name).mkdir(parents=True)
            (self.image / name / "__init__.py").write_text(
                "raise ImportError('the check must not import the engine')\n"
            )
        self.cuda("'12.4'")
        spec = spec_of(Stage("train", device="gpu", devices_per_node=4), RunPaths(folder))
        self.spec: dict[str, Any] = to_dict(replace(spec, needs=NodeNeeds(packages=list(_ENGINE), precision="fp32")))

    def cuda(self, value: str) -> None:
        (self.image / "torch" / "version.py").write_text(
            f"from typing import Optional\ncuda: Optional[str] = {value}\n"
        )

    def check(self, what: str, *flags: str) -> tuple[int, dict[str, Any]]:
        write_json(self.stage_dir / "spec.json", self.spec)
        environment = machine(what) | {"SLURMD_NODENAME": "node7", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
        environment[VARIABLES] = " ".join(RANK_VARIABLES)
        environment["PYTHONPATH"] = f"{self.image}:{environment['PYTHONPATH']}"
        done = call(environment, *flags, "-m", "hpclm.nodes.preflight", str(self.stage_dir), str(self.attempt))
        assert "Traceback" not in done.stderr, done.stderr
        report = json.loads((self.attempt / "preflight" / "node7.json").read_text())
        lines = [f"node7: {one['severity']}: {one['check']}: {one['message']}" for one in report["findings"]]
        assert done.stdout.splitlines() == lines
        return done.returncode, report


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def faults(report: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["check"], one["at_fault"]) for one in report["findings"] if one["severity"] == "error"]


def test_a_fit_node_passes_without_the_engine(node: Node) -> None:
    code, report = node.check("a100")
    assert (code, report["result"], faults(report)) == (0, "ok", [])
    assert report["seconds"] < 30  # 0.03 s where nothing else runs: a job may wait for this on each of its nodes
    assert len(report["facts"]["gpu"]["gpus"]) == 8


@pytest.mark.parametrize(
    ("what", "check"),
    [
        ("a100,lost", "gpu"),
        ("h100,fabric", "fabric"),
        ("a100,remap", "row remap"),
        ("a100,x3", "gpu count"),
        ("a100,old-driver", "driver"),
        ("no-driver", "gpu"),
    ],
)
def test_a_sick_node_is_to_blame(node: Node, what: str, check: str) -> None:
    code, report = node.check(what)
    assert (code, report["result"], faults(report)) == (60, "node", [(check, "node")])


def test_a_precision_that_these_gpus_lack_is_the_runs_fault(node: Node) -> None:
    node.spec["needs"]["precision"] = "bf16"
    code, report = node.check("v100")
    assert (code, report["result"], faults(report)) == (61, "run", [("precision", "run")])


def test_a_model_too_large_for_the_gpu_says_by_how_much(node: Node) -> None:
    node.spec["model"] |= {"num_layers": 80, "hidden_size": 12288, "ffn_hidden_size": 49152, "kv_channels": 6144}
    node.spec["text"] = {"paths": [], "seq_length": 16}
    estimate = memory(from_dict(StageSpec, node.spec))
    assert estimate is not None
    node.spec["needs"]["memory_bytes"] = estimate.total
    code, report = node.check("v100")
    assert (code, faults(report)) == (61, [("gpu memory", "run")] * 4)
    assert "too little); raise parallel.tensor or parallel.pipeline" in report["findings"][0]["message"]


def test_an_engine_built_without_cuda_is_the_runs_fault(node: Node) -> None:
    node.cuda("None")
    code, report = node.check("a100")
    assert (code, faults(report)) == (61, [("cuda", "run")])


def test_an_engine_that_is_not_there_is_the_runs_fault(node: Node) -> None:
    node.spec["device"] = "cpu"
    shutil.rmtree(node.image / "megatron")
    code, report = node.check("a100", "-S")  # without the packages of the interpreter that runs the tests
    assert (code, faults(report)) == (61, [("packages", "run")])
    assert " has no megatron; use an image" in report["findings"][0]["message"]


def test_a_stage_on_the_cpu_asks_for_no_gpu(node: Node) -> None:
    node.spec["device"] = "cpu"
    code, report = node.check("no-driver")
    assert (code, faults(report), report["facts"]["gpu"]) == (0, [], None)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("data", {"train": ["/nowhere/it"]}),
        ("text", {"paths": ["/nowhere/it"]}),
        ("tokenizer", {"kind": "json", "tokenizer_file": "/nowhere/it"}),
        ("base", "/nowhere/it"),
        ("prompts", "/nowhere/it"),
    ],
)
def test_what_the_stage_reads_and_this_node_does_not_see_is_named(node: Node, section: str, value: Any) -> None:
    node.spec[section] = value
    spec = from_dict(StageSpec, node.spec)
    read = stage_inputs(
        roles=("train",),
        data=spec.data,
        text=spec.text,
        indexed=spec.indexed,
        tokenizer=spec.tokenizer,
        base=spec.base,
        prompts=spec.prompts,
    )
    node.spec["needs"]["inputs"] = [one.path for one in read]
    code, report = node.check("a100")
    assert (code, faults(report)) == (60, [("inputs", "node")])
    assert "/nowhere/it cannot be read here; is its folder mounted?" in report["findings"][0]["message"]


def test_memory_that_ranks_of_the_attempt_before_still_hold_is_waited_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(node.stage_dir / "spec.json", node.spec)
    monkeypatch.setattr(preflight, "_PAUSE_S", 0.0)
    monkeypatch.setattr(preflight, "need_of", lambda parallel, needs: Need(devices=4, memory_mib=60_000, cuda="12.4"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    looks = [probed("a100,busy"), probed("a100,busy"), probed("a100")]
    monkeypatch.setattr(preflight, "probe", lambda: looks.pop(0))
    assert preflight.main(str(node.stage_dir), str(node.attempt)) == 0
    assert looks == []
    monkeypatch.setattr(preflight, "_RETRY_S", 0.0)
    looks = [probed("a100,busy")]
    assert preflight.main(str(node.stage_dir), str(node.attempt)) == 60


@pytest.mark.parametrize(
    ("skew_s", "free_gib", "expected"),
    [(0.5, 100.0, []), (-61.0, 100.0, [("clock", "node")]), (0.0, 0.5, [("space", "run")]), (None, None, [])],
)
def test_a_clock_that_is_off_and_a_full_disk(
    skew_s: float | None, free_gib: float | None, expected: list[tuple[str, str]]
) -> None:
    folder = FolderFacts("/runs", visible=True, writable=True, locks=True, skew_s=skew_s, free_gib=free_gib)
    found = preflight.folder_findings(folder)
    assert [(one.check, one.at_fault) for one in found] == expected


def test_a_run_folder_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    done = call(machine("a100"), "-m", "hpclm.nodes.preflight", f"{tmp_path}/no", "/proc/no/001-00")
    assert done.returncode == 60
    assert f"{tmp_path}/no/spec.json cannot be read here" in done.stdout
    assert done.stderr == ""


def test_infiniband_that_cannot_be_used_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, devices = tmp_path / "sys", tmp_path / "dev"
    assert list(network_findings(there, devices)) == []
    (there / "mlx5_0").mkdir(parents=True)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    found = list(network_findings(there, devices))
    assert [(one.severity, one.check) for one in found] == [("warning", "infiniband"), ("warning", "locked memory")]
    assert "only 64 KiB of memory may be locked" in found[1].message
    devices.mkdir()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert list(network_findings(there, devices)) == []
